"""The folders are the diagram: which of them knows which, and what waits for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flashvl"

BOTTOM = {"errors", "reading", "config"}
# Folder or file -> all that it imports, from the bottom to the top. An arrow that is not in here,
# or is in here and not in the code, fails.
ARROWS = {
    "errors": set(),
    "terminal": set(),
    "storage": set(),
    "reading": {"errors", "storage"},
    "assumptions": set(),
    "config": {"assumptions", "errors", "reading"},
    "device": BOTTOM,
    "model": BOTTOM,
    "input": BOTTOM | {"assumptions", "storage"},
    "checkpoint": BOTTOM | {"storage", "model", "input"},
    "generation": {"errors", "device", "model", "input", "reading"},
    "fast": {"errors", "terminal", "model", "checkpoint", "generation"},
    "chat": BOTTOM | {"device", "input", "model", "checkpoint", "generation", "fast"},
    "training": {"errors", "storage", "reading", "terminal", "model", "checkpoint"},
    "finetuning": BOTTOM
    | {"storage", "terminal", "device", "input", "model", "checkpoint", "chat", "training"},
    "nano": BOTTOM | {"assumptions", "terminal", "device", "input", "model", "chat", "training"},
    "evaluation": BOTTOM
    | {
        "storage",
        "terminal",
        "device",
        "model",
        "input",
        "checkpoint",
        "generation",
        "chat",
        "training",
        "nano",
    },
    "tools": BOTTOM
    | {
        "assumptions",
        "terminal",
        "storage",
        "device",
        "model",
        "input",
        "checkpoint",
        "generation",
        "fast",
        "chat",
        "nano",
        "training",
        "finetuning",
    },
    "cli": {"errors", "assumptions", "config", "terminal", "tools"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name in dots, but the package's own face."""
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in sorted(PACKAGE.rglob("*.py"))
    }
    return {name: file for name, file in files.items() if not name.startswith("__")}


def imported(name: str, file: Path) -> Iterator[str]:
    """What a module imports of the package: at its top, in functions, and for types alone."""
    parts = name.removesuffix(".__init__").split(".")
    folder = parts if name.endswith("__init__") else parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(one.name.startswith("flashvl") for one in node.names), name
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1] + (node.module or "").split(".")
            target = ".".join(part for part in base if part)
            known = modules()
            if target in known:
                yield target
            else:
                inside = [f"{target}.{one.name}".strip(".") for one in node.names]
                yield from (one if one in known else f"{target}.__init__" for one in inside)


def test_every_arrow_is_in_the_diagram_and_goes_down():
    found = defaultdict(set)
    for name, file in modules().items():
        folder = name.partition(".")[0]
        found[folder] |= {one.partition(".")[0] for one in imported(name, file)} - {folder}
    assert found.keys() == ARROWS.keys()
    assert {folder: found[folder] ^ arrows for folder, arrows in ARROWS.items()} == {
        folder: set() for folder in ARROWS
    }
    floors = list(ARROWS)
    for folder, arrows in ARROWS.items():
        assert all(floors.index(one) < floors.index(folder) for one in arrows), folder


def test_no_circle_inside_a_folder():
    arrows = {name: set(imported(name, file)) for name, file in modules().items()}
    assert tuple(TopologicalSorter(arrows).static_order())


def test_few_modules_lie_outside_the_folders():
    assert len(list(PACKAGE.glob("[!_]*.py"))) <= 9


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import flashvl; flashvl.FlashVLConfig", ["torch", "PIL", "tokenizers"]),
        ("from flashvl.cli import build_parser; build_parser()", ["torch", "numpy", "PIL"]),
        ("import flashvl.tools.download", ["torch", "flashvl.nano", "flashvl.training"]),
        (
            "from flashvl.cli import main; main(['download', '/no/repository'])",
            ["torch", "flashvl.nano", "flashvl.training"],
        ),
        ("import flashvl.input.tiling", ["torch"]),
    ],
)
def test_who_does_not_need_torch_does_not_wait_for_it(program, absent):
    program += f"; import sys; there = set({absent}) & set(sys.modules); assert not there, there"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_shows_what_it_has_and_no_more():
    import flashvl

    assert flashvl.FlashVL.__module__ == "flashvl.chat"
    assert flashvl.FlashVLModel.__module__ == "flashvl.model.network"
    with pytest.raises(AttributeError, match="no attribute 'FlashVLM'"):
        _ = flashvl.FlashVLM
    with pytest.raises(ImportError):
        from flashvl import Nothing  # noqa: F401
