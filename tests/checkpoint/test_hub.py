"""Downloads, against a small server that stands in for the hub; the real client in between."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny import tiny_model

from flashvl.checkpoint.hub import find_model, published_models, weights_folder
from flashvl.errors import DownloadError

PINNED = "FlashVL/FlashVL-2B-Static"
COMMIT = published_models()[PINNED]["revision"].ljust(40, "0")
# Hubs that answer without an end: to nothing, to files alone, with hours to wait, byte by byte.
ENDLESS = ("endless/silence", "endless/files", "endless/waiting", "endless/bytes")
# Hubs that answer with something else: two commits that a pin begins, another commit than asked.
TWINS, OTHER, FILES_OF_OTHER = "false/twins", "false/commit", "false/files"
# A header of a safetensors file with a shape that is none.
SHAPES, HEADER = "false/shapes", b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'
REPOSITORIES = (PINNED, "someone/tiny", "someone/cut-off", "someone/torchless")
REPOSITORIES += (*ENDLESS, TWINS, OTHER, FILES_OF_OTHER, SHAPES)
# Loads each [name, revision] and prints the outcome as one line of JSON.
LOAD = """
import json, sys
from flashvl import FlashVL, FlashVLError
for name, revision in json.loads(sys.argv[1]):
    try:
        flash = FlashVL.from_pretrained(name, revision=revision, device="cpu")
        weight = flash.model.decoder.norm.weight.sum().item()
        outcome = {"folder": str(flash.folder), "weight": weight}
    except FlashVLError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(outcome))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for when it takes a snapshot."""

    def __init__(self, folder: Path, asked: list[str], *arguments) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0].strip("/").split("/")
        is_api = path[:2] == ["api", "models"]
        owner, name, action, revision, *rest = [*path[2 if is_api else 0 :], *[None] * 4][:8]
        rest = [part for part in rest if part]
        repository = f"{owner}/{name}"
        if repository not in REPOSITORIES:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif repository == "endless/silence" or (repository == "endless/files" and not is_api):
            time.sleep(1000)
        elif repository == "endless/waiting" and not is_api:
            self.answer(429, {"Retry-After": "100000"})
        elif revision and revision not in ("main", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif is_api:
            self.json(
                {"commits": self.commits, "tree": self.tree}.get(action, self.info)(repository)
            )
        elif repository == "someone/cut-off" and self.first_time_of(".safetensors"):
            self.answer(403, {})
        else:
            commit = "e" * 40 if repository == FILES_OF_OTHER else COMMIT
            headers = {"ETag": f'"{rest[0]}"', "X-Repo-Commit": commit}
            body = (self.folder / rest[0]).read_bytes()
            if repository == SHAPES and rest[0].endswith(".safetensors"):
                body = struct.pack("<Q", len(HEADER)) + HEADER + bytes(4)
            self.answer(200, headers, body)

    do_GET = do_HEAD

    def first_time_of(self, ending: str) -> bool:
        return self.path.endswith(ending) and self.asked.count(self.path) == 1

    def info(self, repository: str) -> dict:
        files = [{"rfilename": file["path"]} for file in self.tree(repository)]
        sha = "e" * 40 if repository == OTHER else COMMIT
        return {"id": repository, "sha": sha, "siblings": files}

    def tree(self, repository: str) -> list[dict]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
            for file in sorted(self.folder.iterdir())
        ]

    def commits(self, repository: str) -> list[dict]:
        times = {"date": "2025-05-01T00:00:00.000Z", "title": "", "message": "", "authors": []}
        twin = COMMIT[:-1] + "1" if repository == TWINS else "f" * 40
        return [{"id": commit} | times for commit in (twin, COMMIT)]

    def json(self, content) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and "/endless/bytes/resolve/" in self.path:
            with suppress(OSError):  # nobody listens any more
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        elif self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Says nothing."""


NEVER_FETCHED = ("modeling_flashvl.py", "pytorch_model.bin", "training_args.pt", "weights.pkl")
NEVER_FETCHED += ("LICENSE.py", "other.json", "LICENSEE")


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Every path that was asked for."""
    return []


@pytest.fixture(scope="module")
def hub(tmp_path_factory, asked) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("repository")
    tiny_model("static").save_pretrained(folder)
    for name in NEVER_FETCHED:
        (folder / name).write_text("never fetched")
    for name in ("README.md", "LICENSE"):
        (folder / name).write_text("A tiny model.")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A function: runs a program in a process of its own, with the server as its hub."""
    home = tmp_path_factory.mktemp("home")

    def run(program: str, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ
            | {
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
                "HF_HOME": str(home),
                "HF_HUB_CACHE": str(home / "hub"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "NO_PROXY": "127.0.0.1",
                "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            }
            | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def loads(run):
    """A function: loads names, by that hub."""

    def load(*names: tuple[str, str | None], **environment: str) -> list[dict]:
        return [
            json.loads(line) for line in run(LOAD, json.dumps(names), **environment).splitlines()
        ]

    return load


@pytest.fixture(scope="module")
def online(loads) -> list[dict]:
    return loads(
        (PINNED, None),
        ("someone/tiny", None),
        ("someone/tiny", COMMIT[:8]),
        ("someone/missing", None),
        ("someone/tiny", "no-such-branch"),
        ("someone/tiny", "abcdef0"),
        ("someone/cut-off", None),
        ("someone/cut-off", None),
        (TWINS, COMMIT[:7]),
        (OTHER, COMMIT),
        (FILES_OF_OTHER, COMMIT),
        ("someone/tiny", 5),
    )


def refused(outcome: dict, *words: str) -> None:
    assert outcome.get("error") == "DownloadError", outcome
    assert len(outcome["message"].splitlines()) == 1
    for word in words:
        assert word in outcome["message"]


def test_a_repository_is_downloaded_and_loaded(online):
    assert [one.get("weight") for one in online[:3]] == [16.0] * 3
    assert Path(online[1]["folder"], "README.md").read_text() == "A tiny model."


def test_a_short_pinned_revision_is_looked_up(online, asked):
    assert Path(online[0]["folder"]).name == COMMIT
    assert any(path.startswith(f"/api/models/{PINNED}/commits/") for path in asked)


def test_code_and_pickles_are_never_fetched(online, asked):
    fetched = {path.rsplit("/", 1)[1] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"} <= fetched
    assert not fetched & set(NEVER_FETCHED)
    assert not {file.name for file in Path(online[0]["folder"]).iterdir()} & set(NEVER_FETCHED)


def test_what_the_hub_does_not_have_is_said(online):
    refused(online[3], "someone/missing", "check the name")
    refused(online[4], "someone/tiny", "no-such-branch")
    refused(online[5], "someone/tiny", "abcdef0")


def test_a_short_hash_that_two_commits_begin_with_is_refused(online):
    refused(online[8], "2 commits", COMMIT[:7], "whole hash")


def test_another_commit_than_the_one_that_was_asked_for_is_refused(online):
    refused(online[9], "e" * 40)
    refused(online[10], FILES_OF_OTHER)


def test_a_revision_that_is_no_text_is_refused(online):
    refused(online[11], "revision", "5")


def test_a_download_that_was_cut_off_goes_on_at_the_next_load(online):
    refused(online[6], "someone/cut-off")
    assert online[7].get("weight") == 16.0, online[7]


def test_without_a_network_the_cache_serves_and_the_rest_is_an_error(online, loads):
    names = ((PINNED, None), ("someone/tiny", None), ("someone/tiny", COMMIT))
    names += (
        ("someone/other", None),
        ("someone/other", "abcdef0"),
        ("FlashVL/FlashVL-2B-Dynamic", None),
    )
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nothing listens there
    for environment in (nowhere, nowhere | {"HF_HUB_OFFLINE": "1"}):
        outcomes = loads(*names, **environment)
        assert outcomes[:3] == [online[0], online[1], online[1]]
        for outcome in outcomes[3:]:
            refused(outcome, "could not be downloaded", "network")


# Two bounds of time are lowered. All at once; prints an error and its seconds for each.
LOAD_ENDLESS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from flashvl.checkpoint import hub
from flashvl.errors import DownloadError
hub.REQUEST_SECONDS, hub.MAX_SECONDS = 1, 2
def load(name):
    begun = time.monotonic()
    try:
        hub.find_model(name)
    except DownloadError as error:
        return f"{time.monotonic() - begun:.1f} {error}"
with ThreadPoolExecutor() as pool:
    print(*pool.map(load, sys.argv[1:]), sep="\\n")
"""


def test_a_hub_that_answers_without_an_end_is_given_up(run):
    begun = time.monotonic()
    lines = run(LOAD_ENDLESS, *ENDLESS).splitlines()
    assert time.monotonic() - begun < 60  # the process, which has threads that still wait
    assert len(lines) == len(ENDLESS)
    for name, line in zip(ENDLESS, lines):
        seconds, error = line.split(" ", 1)
        assert float(seconds) < 30
        assert name in error
        assert "try again" in error


@pytest.mark.parametrize("name", ["x" * 5000 + "/y", "a--b/c", "a/b..c"])
def test_a_name_that_no_repository_can_have_is_refused_at_once(name):
    with pytest.raises(DownloadError, match="check the name"):
        find_model(name)


def test_the_embedded_model_and_folders_need_no_hub(tmp_path):
    assert find_model("nano") == weights_folder() / "nano"
    assert find_model(tmp_path) == find_model(str(tmp_path)) == tmp_path


DOWNLOAD = """
import sys
from flashvl.checkpoint.files import read_headers
from flashvl.checkpoint.hub import download, find_model
folder = download(sys.argv[1])
assert find_model(sys.argv[1]) == folder
print(*read_headers(folder))
assert "torch" not in sys.modules
"""


def test_a_download_and_the_reading_of_headers_do_without_torch(run):
    names = [name for name, _ in tiny_model("static").model.named_parameters()]
    headers = run(DOWNLOAD, "someone/torchless").split()
    assert len(headers) == len(set(headers)) == len(names)


FETCH_HEADERS = """
import sys
from flashvl.checkpoint.files import read_headers
from flashvl.checkpoint.hub import download, fetch_headers
from flashvl.errors import DownloadError
folder, headers = fetch_headers(sys.argv[1])
ours = {name: (one.dtype, one.shape) for name, one in read_headers(download(sys.argv[1])).items()}
assert ours == {name: (one.dtype, one.shape) for name, one in headers.items()}
assert (folder / "config.json").exists()
try:
    fetch_headers(sys.argv[2])
except DownloadError as error:
    print(error)
"""


def test_headers_are_fetched_without_the_weights(run):
    assert "the shape of 'a'" in run(FETCH_HEADERS, "someone/torchless", SHAPES)
