"""What the README says is so: its commands, its map of files, its table, its Python."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from flashvl import FlashVL
from flashvl.cli import build_parser, main
from flashvl.config_parts import ASSUMPTIONS
from flashvl.hub import published_models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_test_command_is_the_one_that_runs_before_a_change_lands():
    command = SHELL[1].strip()
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_first_command_answers_rightly_about_its_picture(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, *arguments = shlex.split(SHELL[0].split("&&")[-1])
    assert main(arguments) == 0
    assert capsys.readouterr().out == "a red circle and a blue star\n"


def test_the_commands_are_understood():
    lines = [line for line in SHELL[2].splitlines() if line]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    for arguments in commands:
        assert build_parser().parse_args(arguments).run
    listed = {arguments[0] for arguments in commands}
    tools = {"verify", "parity", "trace", "tiles", "look", "bench"}
    assert listed == {"chat", "download", "train", "score"} | tools


def test_the_map_names_every_file():
    files = {file.name for file in (ROOT / "flashvl").glob("*.py")} - {"__init__.py", "__main__.py"}
    listed = README[README.index("### The files") : README.index("## The command line")]
    assert files == set(re.findall(r"(\w+\.py)", listed))


def test_every_assumption_is_in_the_table():
    table = README[README.index("## Assumptions") :]
    for field in ASSUMPTIONS:
        assert f"`{field}`" in table


def test_every_published_model_is_named():
    for repository in published_models():
        assert repository.removeprefix("FlashVL/") in README


def test_the_python_runs(tmp_path, monkeypatch):
    """The block under "In Python", line by line, with nano in the 2B's place."""
    model = FlashVL.from_pretrained("nano")
    monkeypatch.chdir(tmp_path)
    names = {
        "model": model,
        "FlashVL": FlashVL,
        "FlashVLConfig": type(model.config),
        "image": ROOT / "weights" / "nano" / "pictures" / "purple-triangle.png",
        "messages": [{"role": "user", "content": "What shape is it?"}],
        "config_json": model.config.to_dict(),
    }
    section = README[README.index("## In Python") :]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), names)
    assert [message["role"] for message in names["conversation"].messages] == [
        "user",
        "assistant",
    ] * 2
    assert names["logits"].shape == (*names["input_ids"].shape, model.config.decoder.vocabulary)
    assert (tmp_path / "folder" / "config.json").exists()


def test_the_syllabus_is_that_of_the_notebooks():
    """Each notebook in its order, by its title and with the question that it opens with."""
    section = README[README.index("## The course") : README.index("## Forking")]
    listed = re.findall(
        r"^\| \[(.+?)\]\(notebooks/(.+?)\) \| (.+?) \| \d+ \|$", section, re.MULTILINE
    )
    found = []
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        first = "".join(cells[0]["source"])
        title, question = re.match(r"# (.+)\n\s*\*\*(.+?)\*\*", first).groups()
        found.append((title, file.name, question))
    assert listed == found


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert any(link.endswith(".png") for link in links)
    for link in links:
        assert link.startswith("#") or (ROOT / link).exists(), link


def test_arrows_go_one_way():
    """No circles; boxes know nothing of the model that wires them, it nothing of the rest."""
    arrows = {}
    for file in (ROOT / "flashvl").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1].startswith("__"):
            continue
        arrows[".".join(parts)] = set(_imported(file, parts))
    assert tuple(TopologicalSorter(arrows).static_order())
    assert "flashvl.vision" in arrows["flashvl.model"]
    outer = ("flashvl.nano.", "flashvl.tools.", "flashvl.cli")
    for module, imported in arrows.items():
        if not module.startswith(outer):
            assert not [one for one in imported if one.startswith((*outer, "flashvl.model"))], (
                module
            )


def _imported(file: Path, parts: tuple[str, ...]) -> Iterator[str]:
    """The modules of the package that a file imports, by full name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: -node.level], *(node.module or "").split(".")]
            module = ".".join(part for part in base if part)
            is_file = (ROOT / Path(*module.split("."))).with_suffix(".py").exists()
            yield from [module] if is_file else [f"{module}.{one.name}" for one in node.names]
