"""From the name of a model to a folder of files: embedded, on disk, or from the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import CheckpointError, DownloadError
from .files import Headers, TensorHeader, tensor_files

# Everything that loading needs; code and pickle files of a repository are never fetched.
SMALL_FILES = ["*.json", "merges.txt", "README.md", "LICENSE*"]
WANTED_FILES = [*SMALL_FILES, "*.safetensors"]
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """ "nano", a folder, or a repository id -> the folder with its files.

    A repository is taken from the hub's cache on disk, else downloaded. Raises `CheckpointError`
    for a name that is none of these and `DownloadError` if the hub does not give it.
    """
    if str(name) == "nano":
        return weights_folder() / "nano"
    folder = os.path.expanduser(name)  # unlike Path, os.path takes any text for a name
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.isfile(folder):
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json")
    if is_repository(str(name)):
        return _cached(str(name), revision) or download(str(name), revision)
    raise CheckpointError(
        f'there is no model {name}; use "nano", a folder, or a repository such as '
        f"{next(iter(published_models()))}"
    )


def download(repository: str, revision: str | None = None) -> Path:
    """Fetches a repository into the hub's cache, resuming what is there; returns its folder.

    The published models are pinned to the revision in `weights/published.json`. Raises
    `DownloadError`.
    """
    with hub_errors(repository, revision):
        commit = _full_commit(repository, revision or pinned_revision(repository))
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=commit, allow_patterns=WANTED_FILES
            )
        )


@contextmanager
def hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Every way in which the hub refuses or fails becomes a `DownloadError`."""
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(f"{repository} asks for a login; run `hf auth login` first") from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repository} has no revision {revision}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DownloadError(
            f"the hub has no repository {repository}, and there is no such folder here; "
            "check the name"
        ) from error
    except NotASafetensorsRepoError as error:
        raise DownloadError(f"{repository} has no safetensors files") from error
    except DownloadError:
        raise
    except Exception as error:  # the client lets its network library's own errors through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{repository} could not be downloaded ({reason}); check the network and try again, "
            "what has arrived is kept"
        ) from error


def fetch_headers(repository: str, revision: str | None = None) -> tuple[Path, Headers]:
    """The small files of a repository, in a folder, and its tensors' headers; no weights.

    Raises `DownloadError`.
    """
    with hub_errors(repository, revision):
        commit = _full_commit(repository, revision or pinned_revision(repository))
        folder = huggingface_hub.snapshot_download(
            repository, revision=commit, allow_patterns=SMALL_FILES
        )
        metadata = huggingface_hub.get_safetensors_metadata(repository, revision=commit)
    headers = {
        name: TensorHeader(Path(file), tensor.dtype, tuple(tensor.shape))
        for file, content in metadata.files_metadata.items()
        for name, tensor in content.tensors.items()
    }
    return Path(folder), headers


def is_repository(name: str) -> bool:
    """Whether `name` has the form owner/name and is no folder here."""
    return bool(REPOSITORY.fullmatch(name)) and not os.path.isdir(name)


def pinned_revision(repository: str) -> str | None:
    """The revision that this code was written for, of a published model; else None."""
    return published_models().get(repository, {}).get("revision")


def own_cache() -> Path:
    """Where flashvl keeps on disk what it can make again; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashvl"


@cache
def published_models() -> dict[str, Any]:
    """`weights/published.json`: repository id -> revision, totals and config."""
    return json.loads((weights_folder() / "published.json").read_text(encoding="utf-8"))


def weights_folder() -> Path:
    """`weights/` beside the package in a clone, inside it once installed."""
    package = Path(__file__).parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a complete download, asking nobody; None if there is none."""
    wanted = revision or pinned_revision(repository) or "main"
    for cached in _cached_revisions(repository):
        if cached.commit_hash.startswith(wanted) or wanted in cached.refs:
            folder = Path(cached.snapshot_path)
            with suppress(CheckpointError):  # a download that was cut off goes on instead
                if (folder / "config.json").exists() and tensor_files(folder):
                    return folder
    return None


def _cached_revisions(repository: str) -> list[Any]:
    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except huggingface_hub.errors.CacheNotFound:
        return []
    return [
        revision
        for one in repositories
        if one.repo_id == repository and one.repo_type == "model"
        for revision in one.revisions
    ]


def _full_commit(repository: str, revision: str | None) -> str | None:
    """The hub wants whole commit hashes; a short one is looked up among the commits."""
    if revision is None or not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return revision
    api = huggingface_hub.HfApi()
    api.model_info(repository)  # fails at once without a network; the next would try for long
    commits = api.list_repo_commits(repository)
    matches = [commit.commit_id for commit in commits if commit.commit_id.startswith(revision)]
    if not matches:
        raise DownloadError(f"{repository} has no commit {revision}; name another revision")
    return matches[0]
