"""What the README says is so: its commands, its map of files, its table, its Python."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_house import ARROWS

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.assumptions import TABLE, Alternative
from flashvl.checkpoint.hub import published_models
from flashvl.cli import build_parser, main
from flashvl.tools.settle.answers import read_answers
from flashvl.tools.settle.measure import Measure

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SHELL = SHELL_BLOCK.findall(README)
PAGES = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.md"), *(ROOT / "weights").rglob("*.md")]


def test_the_test_command_is_the_one_that_runs_before_a_change_lands():
    (command,) = [one.strip() for one in SHELL if "pytest" in one]
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_first_command_prints_what_the_readme_shows(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, *arguments = shlex.split(SHELL[0].split("&&")[-1])
    assert main(arguments) == 0
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)


def test_the_commands_are_understood():
    """Those of every page; and every command is in the README's list."""
    parser = build_parser()
    for page in PAGES:
        commands = commands_of(page.read_text(encoding="utf-8"))
        for arguments in commands:
            assert parser.parse_args(arguments).module
        if page.name == "README.md" and page.parent == ROOT:
            (known,) = (action.choices for action in parser._actions if action.choices)
            assert {arguments[0] for arguments in commands} == set(known)


def commands_of(page: str) -> list[list[str]]:
    """The arguments of `flashvl` and `torchrun ... -m flashvl` in a page's blocks of the shell."""
    lines = [line for block in SHELL_BLOCK.findall(page) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if "&&" not in line]
    return [
        one[one.index("flashvl") + 1 :]
        for one in words
        if one[:1] == ["flashvl"] or (one[:1] == ["torchrun"] and "flashvl" in one)
    ]


def test_the_table_of_folders_is_the_house_from_the_bottom_up():
    section = README[README.index("### The folders") : README.index("## The command line")]
    cells = " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    listed = re.findall(r"`(\w+)(?:\.py|/)`", cells)[1:]
    assert set(listed) == set(ARROWS)
    floors = [listed.index(name) for name in ARROWS]
    for name, floor in zip(ARROWS, floors):
        assert all(listed.index(below) < floor for below in ARROWS[name]), name


def test_the_page_of_assumptions_is_the_table_of_the_code():
    """Row by row: what, default, alternatives, how sure, field, source, what settles it."""

    def shown(one: Alternative) -> str:
        value = json.dumps(one.value) if isinstance(one.value, bool) else one.value
        return f"`{value}` {one.meaning}".rstrip()

    wanted = []
    for one in TABLE:
        default, others = one.default, one.alternatives
        if not default:
            default, others = shown(others[0]), others[1:]
        others = "; ".join(map(shown, others))
        others = "`1` to `12`" if one.name == "max_tiles" else others
        field = one.place or (f"`{one.name}`" if one.part else "")
        cells = (one.what, default, others, one.sure, field, one.source, one.settled_by)
        wanted.append(f"| {' | '.join(cells)} |")
    page = (ROOT / "weights" / "ASSUMPTIONS.md").read_text(encoding="utf-8")
    assert re.findall(r"^\|.*\|$", page, re.MULTILINE)[2:] == wanted


def test_the_lines_that_record_answers_do(tmp_path, monkeypatch):
    """Those of the page of assumptions, with nano in the published code's place."""
    page = (ROOT / "weights" / "ASSUMPTIONS.md").read_text(encoding="utf-8")
    nano = FlashVL.from_pretrained("nano", "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(nano.folder / "pictures" / "red-ring-and-green-cross.jpg", f"pictures/{name}")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), {"model": nano})
    samples = read_answers(tmp_path / "answers.jsonl", nano.tokenizer)
    assert len(samples) == 6
    assert samples[0].conversations[0][1] == "a red ring and a green cross"
    assert samples[5].picture == tmp_path / "pictures" / "b.jpg"
    measured = [Measure(nano, own=True)(one, {}) for one in samples]
    assert all(one.likeliest == one.tokens for one in measured)


def test_every_published_model_is_named():
    for repository in published_models():
        assert repository.removeprefix("FlashVL/") in README


def test_the_python_runs(tmp_path, monkeypatch):
    """The block under "In Python", line by line, with nano in the 2B's place."""
    flash = FlashVL.from_pretrained("nano")
    monkeypatch.chdir(tmp_path)
    names = {
        "flash": flash,
        "FlashVLModel": FlashVLModel,
        "FlashVLConfig": FlashVLConfig,
        "image": ROOT / "weights" / "nano" / "pictures" / "purple-triangle.png",
        "messages": [{"role": "user", "content": "What shape is it?"}],
        "config_json": flash.config.to_dict(),
    }
    section = README[README.index("## In Python") :]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), names)
    assert [message["role"] for message in names["conversation"].messages] == [
        "user",
        "assistant",
    ] * 2
    wanted = (*names["prompt"].input_ids.shape, flash.config.decoder.vocabulary)
    assert names["logits"].shape == wanted
    assert (tmp_path / "folder" / "config.json").exists()


def test_the_syllabus_is_that_of_the_notebooks():
    """Each notebook in its order, by its title and with the question that it opens with."""
    section = README[README.index("## The course") : README.index("## How right, how fast")]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    anchors = {
        "#" + re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in link:
            assert link in anchors or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    """By their path in the repository, or in the package."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:flashvl|tests|weights|notebooks)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "flashvl" / name).exists(), name
