"""Shape comments and docstrings held against what really passes through.

The convention: the comment at the end of a statement, `# (B, T, D)`, is the shape of what it
assigns or returns; `2 x (...)` of two such, `each (...)` of all in a list; a comment may end in
`or None`. What is assigned may be an attribute. In a docstring `(...), (...) -> (...)` are the
arrays that a function, or a module's forward, takes and gives. A letter or a name has one value
within one call: that of a local variable or a known number where there is one, else the first it
is seen with.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import itertools
import re
import sys
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

SHAPE = r"\(([^()]*,[^()]*|T)\)"
COMMENT = re.compile(r"# (?:(\d) x |each )?\(([^()]+)\)( or None)?$")
NAME = re.compile(r"[A-Za-z][A-Za-z_]*(?: [A-Za-z]+)*")


@dataclass
class Claim:
    """A shape that a source line or a docstring claims."""

    where: str
    shape: str
    parts: int = 1
    may_be_none: bool = False
    targets: list[str] = field(default_factory=list)  # what is assigned; none: returned
    lines: range = range(0)


def comment_claims(module: ModuleType) -> list[Claim]:
    """The claims at the ends of a module's statements."""
    path = Path(inspect.getsourcefile(module))
    source = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and COMMENT.match(token.string)
    }
    claims = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign | ast.Return) or node.end_lineno not in comments:
            continue
        number, shape, none = COMMENT.match(comments.pop(node.end_lineno)).groups()
        targets = [
            ast.unparse(target)
            for target in (node.targets if isinstance(node, ast.Assign) else ())
            for target in (target.elts if isinstance(target, ast.Tuple) else (target,))
        ]
        where, lines = f"{path.name}:{node.lineno}", range(node.lineno, node.end_lineno + 1)
        claims.append(Claim(where, shape, int(number or 1), bool(none), targets, lines))
    assert not comments, f"{path.name}: no assignment or return ends at {sorted(comments)}"
    return claims


def docstring_claims(module: ModuleType) -> dict[CodeType, tuple[list[str], list[str], str]]:
    """Code of a function or a module's forward -> shapes taken, shapes given, where."""
    found = {}
    for owner in (module, *(one for _, one in inspect.getmembers(module, inspect.isclass))):
        for name, one in vars(owner).items():
            function = one.forward if inspect.isclass(one) and hasattr(one, "forward") else one
            if not inspect.isfunction(function) or one.__module__ != module.__name__:
                continue
            sentences = re.split(r"[.:] ", " ".join((one.__doc__ or "").split()))
            for sentence in sentences:
                if "->" in sentence:
                    taken, given = (re.findall(SHAPE, part) for part in sentence.split("->", 1))
                    if taken or given:
                        found[function.__code__] = (taken, given, f"{module.__name__}.{name}")
    return found


def fits(claimed: str, shape: tuple[int, ...], values: dict[str, int]) -> bool:
    """Whether a shape is as claimed; names without a value get theirs from it."""
    dims = [dim.strip() for dim in claimed.rstrip(",").split(",")]
    if dims[0] == "...":
        dims, shape = dims[1:], shape[len(shape) - len(dims) + 1 :]
    elif dims[-1] == "...":
        dims, shape = dims[:-1], shape[: len(dims) - 1]
    if len(dims) != len(shape):
        return False
    return all(
        any(_fits(option, size, values) for option in sorted(dim.split(" or "), key=_unknown))
        for dim, size in zip(dims, shape)
    )


def _unknown(option: str) -> bool:
    """Numbers first, or else "B or 1" would make B what may as well be the 1."""
    return not option.isdigit()


def _fits(dim: str, size: int, values: dict[str, int]) -> bool:
    names = NAME.findall(dim)
    if dim in names:
        return values.setdefault(dim, size) == size
    if any(name not in values for name in names):
        return True  # a sum or product of something unknown says nothing
    formula = NAME.sub(lambda name: str(values[name[0]]), dim).replace("²", " ** 2")
    return eval(formula, {"__builtins__": {}}) == size  # numbers and operators alone


class Checker:
    """Runs code and compares every claim of the given modules that it comes by."""

    def __init__(
        self, modules: list[ModuleType], known: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """known: for a module's name the values of letters and names that hold in all of it."""
        self.comments = {
            inspect.getsourcefile(module): comment_claims(module) for module in modules
        }
        self.docstrings = {k: v for module in modules for k, v in docstring_claims(module).items()}
        self.known = dict(known or {})
        self.seen: set[str] = set()
        self.wrong: set[str] = set()

    def run(self, action: Callable[[], Any]) -> None:
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            action()
        finally:
            sys.settrace(before)

    @property
    def all(self) -> set[str]:
        """Where there are claims."""
        lines = {claim.where for claims in self.comments.values() for claim in claims}
        return lines | {where for _, _, where in self.docstrings.values()}

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Callable | None:
        claims = self.comments.get(frame.f_code.co_filename)
        if claims is None or frame.f_code.co_name.startswith("<"):
            return None  # a comprehension is a part of the statement that it stands in
        module = Path(frame.f_code.co_filename).stem
        values, pending = dict(self.known.get(module, {})), []
        of_docstring = dict(values)
        taken, given, where = self.docstrings.get(frame.f_code, ([], [], ""))
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        found = [shape for name in names for shape in _shapes(frame.f_locals[name])]
        for claimed, shape in zip(taken, found):
            self._compare(where, claimed, shape, of_docstring | _numbers(frame), of_docstring)

        def on_event(frame: FrameType, event: str, argument: Any) -> Callable:
            here = [one for one in claims if frame.f_lineno in one.lines]
            left = [one for one in pending if one.targets and one not in here]
            for claim in pending[:] if event == "return" else left:
                pending.remove(claim)
                value = [_assigned(frame, target) for target in claim.targets] or argument
                self._check(claim, value, values, frame)
            if event == "line":
                pending.extend(one for one in here if one not in pending)
            if event == "return":
                for claimed, shape in zip(given, _shapes(argument)):
                    usable = of_docstring | _numbers(frame)
                    self._compare(where, claimed, shape, usable, of_docstring)
            return on_event

        return on_event

    def _check(self, claim: Claim, value: Any, values: dict[str, int], frame: FrameType) -> None:
        shapes = _shapes(value)
        if not shapes and claim.may_be_none:
            return
        if len(shapes) < claim.parts:
            self.wrong.add(f"{claim.where}: {len(shapes)} arrays, claimed are {claim.parts}")
        for shape in shapes:
            self._compare(claim.where, claim.shape, shape, values | _numbers(frame), values)

    def _compare(
        self,
        where: str,
        claimed: str,
        shape: tuple[int, ...],
        usable: dict[str, int],
        kept: dict[str, int],
    ) -> None:
        self.seen.add(where)
        before = set(usable)
        if not fits(claimed, shape, usable):
            self.wrong.add(f"{where}: claimed ({claimed}), found {shape}")
        kept.update((name, size) for name, size in usable.items() if name not in before)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    """The shapes of an array, or of all arrays in a tuple or list."""
    if isinstance(value, list | tuple):
        return list(itertools.chain.from_iterable(map(_shapes, value)))
    shape = getattr(value, "shape", None)
    return [] if shape is None else [tuple(shape)]


def _assigned(frame: FrameType, target: str) -> Any:
    """What a name or an attribute, in dots, holds."""
    name, *attributes = target.split(".")
    return functools.reduce(getattr, attributes, frame.f_locals.get(name))


def _numbers(frame: FrameType) -> dict[str, int]:
    """Local variables that are whole numbers, by the words that comments use for them."""
    return {
        name.replace("_", " "): value
        for name, value in frame.f_locals.items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
