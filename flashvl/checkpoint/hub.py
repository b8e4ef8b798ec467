"""From the name of a model to a folder of files: embedded, on disk, or from the hub."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import CheckpointError, DownloadError, FlashVLError, shortened
from ..reading import is_integer, read_path, shown
from .files import (
    INDEX,
    SINGLE,
    Headers,
    TensorHeader,
    is_plain,
    read_weight_map,
    tensor_files,
)

# Of a repository only these files are fetched, and weights; never code or pickle files.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    INDEX,
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT, SHORT_COMMIT = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{7,39}")

# A download is given up if less than so many bytes arrive in so many seconds.
MIN_BYTES, MAX_SECONDS = 2**16, 60
REQUEST_SECONDS = 10  # for an answer to a question about a repository or a file to begin

Result = TypeVar("Result")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """ "nano", a folder, or a repository id -> the folder with its files.

    A repository is taken from the hub's cache on disk, else downloaded. Raises `CheckpointError`
    for a name that is none of these and `DownloadError` if the hub does not give it.
    """
    folder = None
    with suppress(CheckpointError):
        folder = read_path(name, "model", CheckpointError)
    text = name if isinstance(name, str) else shown(name) if folder is None else str(folder)
    if text == "nano":
        return weights_folder() / "nano"
    if folder is not None and os.path.isdir(folder):  # False where nobody may look
        return folder
    if folder is not None and os.path.lexists(folder):
        raise CheckpointError(f"{folder} is not a folder; give the one that holds config.json")
    if is_repository(text):
        return _cached(text, revision) or download(text, revision)
    raise CheckpointError(
        f'there is no model {shortened(text, 100)}; use "nano", a folder, or a repository such as '
        f"{next(iter(published_models()))}"
    )


def download(repository: str, revision: str | None = None) -> Path:
    """Fetches a repository into the hub's cache, resuming what is there; returns its folder.

    The published models are pinned to the revision in `weights/published.json`, of which seven
    digits are all that is known. Raises `DownloadError`.
    """

    def work() -> Path:
        asked, commit, names = _resolve(repository, revision)
        weights = [name for name in names if is_plain(name) and name.endswith(".safetensors")]
        return _fetch(repository, asked, commit, [*_small(names), *weights])

    with hub_errors(repository, revision):
        return _watched(repository, work)


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
    except FlashVLError:
        raise
    except Exception as error:  # the client lets its network library's own errors through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"{repository} could not be downloaded ({reason}); check the network and try again, "
            "what has arrived is kept"
        ) from error


def fetch_headers(repository: str, revision: str | None = None) -> tuple[Path, Headers]:
    """The small files of a repository, in a folder, and its tensors' headers; no weights.

    Raises `DownloadError`, and `CheckpointError` for a damaged index.
    """

    def work() -> tuple[Path, Headers]:
        asked, commit, names = _resolve(repository, revision)
        folder = _fetch(repository, asked, commit, _small(names))
        if SINGLE in names:
            files = [SINGLE]
        elif INDEX in names:
            files = sorted(set(read_weight_map(folder).values()))
        else:
            raise DownloadError(f"{repository} has no safetensors files")
        headers: Headers = {}
        for file in files:
            content = HfApi().parse_safetensors_file_metadata(repository, file, revision=commit)
            for name, tensor in content.tensors.items():
                if not all(is_integer(one) and one >= 0 for one in tensor.shape):
                    raise ValueError(f"{file} is damaged: the shape of {shown(name)}")
                headers[name] = TensorHeader(Path(file), str(tensor.dtype), tuple(tensor.shape))
        return folder, headers

    with hub_errors(repository, revision):
        return _watched(repository, work)


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
    """The folder of a complete download, asking nobody; None if there is none.

    Raises `DownloadError` for a short commit hash that more than one begins with.
    """
    wanted = _asked(repository, revision)
    if SHORT_COMMIT.fullmatch(wanted):
        commits = [cached.commit_hash for cached in _cached_revisions(repository)]
        matches = _beginning_with(wanted, commits, repository)
        wanted = next(iter(matches), wanted)
    for cached in _cached_revisions(repository):
        if cached.commit_hash == wanted or wanted in cached.refs:
            folder = Path(cached.snapshot_path)
            with suppress(CheckpointError):  # a download that was cut off goes on instead
                if all(map(os.path.isfile, [folder / "config.json", *tensor_files(folder)])):
                    return folder
    return None


def _cached_revisions(repository: str) -> list[Any]:
    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except (huggingface_hub.errors.CacheNotFound, OSError, ValueError):
        return []  # no cache, or none that can be read
    return [
        revision
        for one in repositories
        if one.repo_id == repository and one.repo_type == "model"
        for revision in one.revisions
    ]


def _asked(repository: str, revision: object) -> str:
    """The revision that is wanted. Raises `DownloadError` if it is not a text."""
    if revision is not None and not isinstance(revision, str):
        raise DownloadError(f"revision must be a text or None, found {shown(revision)}")
    return revision or pinned_revision(repository) or "main"


def _resolve(repository: str, revision: str | None) -> tuple[str, str, list[str]]:
    """What is asked for of the hub: the revision, its commit, and the names of its files.

    The commit is a whole hash. Raises `DownloadError`.
    """
    asked, api = _asked(repository, revision), HfApi()
    if SHORT_COMMIT.fullmatch(asked):  # the hub wants whole ones
        api.model_info(repository, timeout=REQUEST_SECONDS)  # without a network it fails at once
        commits = [commit.commit_id for commit in api.list_repo_commits(repository)]
        matches = _beginning_with(asked, commits, repository)
        if not matches:
            raise DownloadError(f"{repository} has no commit {asked}; name another revision")
        asked = matches.pop()
    info = api.model_info(repository, revision=asked, timeout=REQUEST_SECONDS)
    commit = info.sha or ""
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(asked) and commit != asked):
        raise DownloadError(
            f"the hub answers with {shown(commit)} where {repository} {asked} was asked for"
        )
    return asked, commit, [file.rfilename for file in info.siblings or []]


def _beginning_with(short: str, commits: Iterable[str], repository: str) -> set[str]:
    """The commit that a short hash stands for, or none. Raises `DownloadError` for several."""
    matches = {one for one in commits if COMMIT.fullmatch(one) and one.startswith(short)}
    if len(matches) > 1:
        raise DownloadError(
            f"{len(matches)} commits of {repository} begin with {short}; give the whole hash of one"
        )
    return matches


def _small(names: Iterable[str]) -> list[str]:
    return [name for name in SMALL_FILES if name in names]


def _fetch(repository: str, asked: str, commit: str, names: Iterable[str]) -> Path:
    """Files of a commit into the hub's cache -> their folder. Raises `DownloadError`."""
    folders = {
        Path(
            huggingface_hub.hf_hub_download(
                repository, name, revision=asked, etag_timeout=REQUEST_SECONDS
            )
        ).parent
        for name in names
    }
    if {folder.name for folder in folders} != {commit}:
        raise DownloadError(
            f"{repository} {asked} has changed meanwhile, or has no files; try again"
        )
    return folders.pop()


def _watched(repository: str, work: Callable[[], Result]) -> Result:
    """What `work` gives, which asks the hub: in a thread that is left behind if nothing comes.

    The client bounds the time of most requests, but waits for as long as a server tells it to.
    Raises `DownloadError` if less than `MIN_BYTES` arrive in `MAX_SECONDS`.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()  # the process does not wait for it at its end
    cache_folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder = cache_folder / f"models--{repository.replace('/', '--')}"
    counted, since = _bytes_in(folder), time.monotonic()
    while not wait([outcome], timeout=1).done:
        arrived = _bytes_in(folder)
        if abs(arrived - counted) >= MIN_BYTES:
            counted, since = arrived, time.monotonic()
        elif time.monotonic() - since > MAX_SECONDS:
            raise DownloadError(
                f"the hub has sent next to nothing of {repository} for {MAX_SECONDS} seconds; try "
                "again later, what has arrived is kept"
            )
    return outcome.result()


def _bytes_in(folder: Path) -> int:
    """Bytes on disk of all files in a folder, some of which may come and go."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                file = os.lstat(os.path.join(place, name))
                # A file may be long and have little in it yet; not every system counts blocks.
                total += 512 * getattr(file, "st_blocks", file.st_size // 512)
    return total
