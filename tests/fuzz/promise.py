"""One hostile input, what is promised of it, and what of that was broken."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType

MAX_LINE = 320  # characters of an error: about 300
SPRUNG = "sprung"  # the file that whatever is planted would make, in the place of the case

# Audit events of Python -> what they are a sign of.
STARTS = ["subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"]
SIGNS = dict.fromkeys([*STARTS, "os.startfile", "os.system", "pty.spawn"], "start")
SIGNS |= {"socket.connect": "connect", "pickle.find_class": "unpickle"}


class Broken(Exception):
    """A result that is wrong: in a few words, and all that is known."""

    def __init__(self, words: str, detail: str = "") -> None:
        super().__init__(words)
        self.detail = detail


@dataclass(frozen=True)
class Case:
    """A hostile input: `what` it is in words, and how to give it to flashvl.

    `do` raises `Broken` for a result that is wrong. With `must_refuse` any result is wrong.
    `writes` are files and folders that may be new, and with `replaces` changed, if it is not
    refused; with `leaves` also if it is, as empty folders always may. `may` has the signs (see
    `SIGNS`) that are nothing bad here.
    """

    what: str
    do: Callable[[], object]
    must_refuse: bool = False
    writes: tuple[Path, ...] = ()
    replaces: bool = False
    leaves: bool = False
    may: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Problem:
    """A promise that was broken: in a few words, where, and all that is known."""

    words: str
    where: str = ""
    detail: str = ""


class Watch:
    """Sees what this process and those forked from it do that no input may make them do."""

    def __init__(self) -> None:
        self.place: str | None = None

    def install(self) -> None:
        # Shared with forked processes.
        self._noted = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        sys.addaudithook(self._note)

    @contextmanager
    def watching(self, place: Path) -> Iterator[None]:
        self._noted.seek(0)
        self._noted.truncate()
        self.place = str(place)
        try:
            yield
        finally:
            self.place = None

    def fork(self) -> int:
        """`os.fork` for the suite itself, unseen; the new process is watched."""
        place, self.place = self.place, None
        try:
            return os.fork()
        finally:
            self.place = place

    def seen(self) -> list[tuple[str, str]]:
        """(sign, what happened) of the last case, in order."""
        self._noted.seek(0)
        lines = self._noted.read().decode("utf-8", "replace").splitlines()
        return [(sign, rest) for sign, _, rest in (line.partition(" ") for line in lines)]

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.place is None:
            return
        sign = SIGNS.get(event)
        if event == "exec" and isinstance(arguments[0], CodeType):
            name = arguments[0].co_filename
            sign = "execute" if name.startswith(self.place) else None
            arguments = (name,)
        if sign is not None:
            try:
                shown = ascii(arguments)[:200]
            except Exception:
                shown = "?"
            os.write(self._noted.fileno(), f"{sign} {event} {shown}\n".encode())


WATCH = Watch()


def judge(case: Case, place: Path) -> tuple[bool, Problem | None]:
    """Does a case whose files lie in `place` -> whether it was refused, and what was broken."""
    before = files_of(place)
    refused, problem = False, None
    with WATCH.watching(place):
        try:
            case.do()
        except Broken as error:
            problem = Problem(str(error), "", error.detail)
        except BaseException as error:  # a panic of a Rust library is no Exception
            refused, problem = judge_error(error)
    if problem is None and case.must_refuse and not refused:
        problem = Problem("it was not refused")
    for sign, happened in WATCH.seen():
        if problem is None and sign not in case.may:
            problem = Problem(f"it made flashvl {sign}", happened.split()[0], happened)
    if problem is None:
        after = files_of(place)
        changes = {one for one in before.keys() | after.keys() if before.get(one) != after.get(one)}
        changes = {one for one in changes if not may_change(case, one, one not in before, refused)}
        if changes:
            words = "a refused input left or changed files" if refused else "it changed files"
            problem = Problem(words, "", ", ".join(map(ascii, sorted(changes)[:5])))
    return refused, problem


def judge_error(error: BaseException) -> tuple[bool, Problem | None]:
    from flashvl.errors import FlashVLError

    if isinstance(error, FlashVLError):
        wrong = wrong_line(str(error))
        where = where_from(error.__traceback__)
        return True, wrong and Problem(f"a {type(error).__name__} {wrong}", where, shown(error))
    words = f"{type(error).__name__} was raised"
    return False, Problem(words, where_from(error.__traceback__), shown(error))


def wrong_line(text: str) -> str | None:
    """What is wrong with the text of an error, if anything is."""
    if not text.strip():
        return "says nothing"
    if not text.isprintable():
        return "has a line break or a control character"
    if len(text) > MAX_LINE:
        return "is longer than a line"
    return None


def shown(error: BaseException) -> str:
    try:
        return ascii(str(error)[:MAX_LINE])
    except Exception:
        return "its text cannot be made"


def where_from(trace: TracebackType | None) -> str:
    """The last function of flashvl on the way to an error, and where it was raised."""
    frames = traceback.extract_tb(trace)
    ours = [one for one in frames if f"{os.sep}flashvl{os.sep}" in one.filename]
    places = [*ours[-1:], *frames[-1:]]
    names = [f"{Path(one.filename).name}:{one.name}" for one in places]
    return " > ".join(dict.fromkeys(names))


Files = dict[str, tuple[object, ...]]  # by path; what would show a change


def files_of(place: Path) -> Files:
    """Everything below a folder, with what it holds; nothing is followed or opened but files."""
    files: Files = {}
    for folder, folders, names in os.walk(place):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            files[path] = (kind,)
            if stat.S_ISLNK(status.st_mode):
                files[path] = (kind, os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                files[path] = (kind, status.st_size, digest(path, status))
    return files


def digest(path: str, status: os.stat_result) -> object:
    if status.st_size > 2**20:
        return status.st_mtime_ns
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read()).digest()


def may_change(case: Case, path: str, new: bool, refused: bool) -> bool:
    """Whether a case allows that this path is new, or else changed or gone."""
    roots = map(str, case.writes)
    below = any(path == root or path.startswith(root + os.sep) for root in roots)
    may_be_there = not refused or case.leaves or os.path.isdir(path)
    return below and (new or case.replaces) and may_be_there
