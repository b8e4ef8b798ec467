"""The page for people who fork: its examples run, its change applies, and all it names exists."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_house import ARROWS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "notebooks" / "forking.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = {
    title: block
    for title, text in SECTIONS.items()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}
DRAWING = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL).group(1)
DIFF = re.search(r"```diff\n(.*?)```", PAGE, re.DOTALL).group(1)
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
# Words of the examples, of files and of other people's code, which flashvl does not define.
NOT_OURS = {"window", "weight", "weighted", "trim", "mean", "none", "mask", "grids", "positions"}
NOT_OURS |= {"model_type", "image_token_num", "rope_theta", "use_sliding_window", "transformers"}
NOT_OURS |= {"compressor.direct.weight", "llm.lm_head.weight"}

# What must hold once the page's change is applied.
WEIGHTED = """
import torch
from flashvl import FlashVL
from flashvl.cli import main
from flashvl.model.compressor import average_margins, trim_margins, weigh_margins

nano = FlashVL.from_pretrained("nano", "cpu", assumptions={"stitching": "weighted"})
side, margin = nano.config.vision.side, nano.config.stitched_margin
features = torch.randn(7 + 3, side * side, nano.config.vision.width)
x = features[:7].unflatten(1, (side, side))
close = torch.testing.assert_close
close(weigh_margins(x, (2, 3), margin, 0.0), trim_margins(x, margin))
close(weigh_margins(x, (2, 3), margin, 1.0), average_margins(x, (2, 3), margin))
weighted = weigh_margins(x, (2, 3), margin, 0.5)
reduced = nano.model.compressor.reduce(features, [(2, 3), (1, 2)])
close(reduced[:7], weighted.flatten(1, 2))
other = weigh_margins(features[7:].unflatten(1, (side, side)), (1, 2), margin, 0.5)
close(reduced[7:], other.flatten(1, 2))
assert not torch.allclose(weighted, average_margins(x, (2, 3), margin))
picture = nano.folder / "pictures" / "red-circle-and-blue-star.png"
assert nano.chat(picture, [{"role": "user", "content": "What is in the picture?"}])
assert main(["tiles", "--image", str(picture), "--out", "tiles.png"]) == 0
"""


def run(code: str, folder: Path, root: Path = ROOT) -> None:
    """Runs code in a Python of its own, in `folder`, with the flashvl of `root`."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_drawing_is_the_house():
    """All that the house holds, once each, and all that anything imports in lines below it."""
    floors = [re.findall(r"\b(\w+)(?:/|\.py)(?= |$)", line) for line in DRAWING.splitlines()]
    lowest = floors[-1]  # what lies at the bottom is one line
    floor_of = {name: floor for floor, names in enumerate(floors) for name in names}
    assert sorted(name for names in floors for name in names) == sorted(ARROWS)
    for name, imported in ARROWS.items():
        for one in imported:
            assert floor_of[name] < floor_of[one] or {name, one} <= set(lowest), (name, one)


def test_each_box_has_one_example():
    boxes = [f"The {box}" for box in ("tower", "tiler", "compressor", "decoder")]
    assert list(EXAMPLES) == [*boxes, "Your own checkpoint"]
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("title", EXAMPLES)
def test_examples_are_short_and_check_themselves(title):
    lines = EXAMPLES[title].splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 100
    assert re.search(r"^ *(assert |torch\.testing\.assert_close)", EXAMPLES[title], re.MULTILINE)


def test_examples_run_as_they_stand(tmp_path):
    """Each by itself; in reverse, so that none finds what one above it has left in a table."""
    for title, code in EXAMPLES.items():
        (tmp_path / f"{title}.py").write_text(code, encoding="utf-8")
    files = [f"{title}.py" for title in reversed(EXAMPLES)]
    run(f"import runpy\nfor file in {files}:\n    runpy.run_path(file)", tmp_path)


def test_the_change_for_good_applies_and_works(tmp_path):
    copy = tmp_path / "copy"
    for name in ("flashvl", "weights"):
        shutil.copytree(ROOT / name, copy / name)
    added = [line for line in DIFF.splitlines() if line.startswith("+") and line[:3] != "+++"]
    assert len(added) < 30
    for part in re.split(r"^--- a/", DIFF, flags=re.MULTILINE)[1:]:
        file = copy / part.split("\n", 1)[0]
        for hunk in re.split(r"^(?=@@ )", part, flags=re.MULTILINE)[1:]:
            heading, *lines = hunk.splitlines(keepends=True)
            before = [line[1:] for line in lines if line[0] != "+"]
            after = [line[1:] for line in lines if line[0] != "-"]
            # `git apply` finds a place that has moved, but refuses a wrong count of lines.
            counts = [int(one) for one in re.findall(r"[-+]\d+,(\d+)", heading)]
            assert counts == [len(before), len(after)], heading
            text = file.read_text(encoding="utf-8")
            assert text.count("".join(before)) == 1, f"{file.name} has changed:\n{heading}"
            changed = text.replace("".join(before), "".join(after))
            file.write_text(changed, encoding="utf-8")
    run(WEIGHTED, tmp_path, copy)


def defined(file: Path) -> set[str]:
    """What a file defines: functions, classes, constants and fields; `Class.name` in a class."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef):
            inside = "" if isinstance(node, ast.Module) else f"{node.name}."
            for one in node.body:
                found = [one.name] if isinstance(one, ast.FunctionDef | ast.ClassDef) else []
                targets = one.targets if isinstance(one, ast.Assign) else []
                targets += [one.target] if isinstance(one, ast.AnnAssign) else []
                found += [target.id for target in targets if isinstance(target, ast.Name)]
                names |= {inside + name for name in found} | set(found)
    return names


def test_every_file_and_every_name_exists():
    files = set(re.findall(r"\b(?:flashvl|tests|weights)/[\w/]+\.(?:py|md)\b", PAGE))
    assert len(files) > 15
    everything = set()
    for folder in ("flashvl", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            everything |= defined(file)
    missing = {file for file in files if not (ROOT / file).exists()}
    names = set(re.findall(rf"`({NAME})`", PROSE)) - NOT_OURS
    names = {name for name in names if not name.endswith((".json", ".safetensors"))}
    missing |= {name for name in names if name not in everything}
    assert not missing
    assert len(names) > 40


def test_names_stand_in_the_file_that_is_said():
    """ "`name` in `file`", "`name` (`file`)", and the rows of the table."""
    said = re.findall(rf"`({NAME})`\s+(?:in\s+|\()`((?:flashvl|tests)/[\w/]+\.py)`", PROSE)
    assert len(said) > 12
    for name, file in said:
        assert name in defined(ROOT / file), (name, file)
    for row in re.findall(r"^\| the .*\|$", PAGE, re.MULTILINE):
        _, files, names, _ = row.strip("|").split(" | ")
        found = set().union(*(defined(ROOT / file) for file in re.findall(r"`(.+?)`", files)))
        assert set(re.findall(r"`(.+?)`", names)) <= found


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert all((ROOT / "notebooks" / link).exists() for link in links)
