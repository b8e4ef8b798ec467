"""The course: each notebook has the form of all, and runs from a clean kernel to its end."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [notebook.name for notebook in NOTEBOOKS]
# What `pip install ".[notebooks]"` brings, by the names of the modules.
BROUGHT = {"flashvl", "torch", "safetensors", "tokenizers", "PIL", "numpy", "huggingface_hub"}
BROUGHT |= {"matplotlib", "IPython"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr|var|mnt)/|\b[A-Z]:\\")
LARGEST = 400_000  # bytes
each_notebook = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """The headings from `## ` down, in order."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"^(##+ .+)$", prose, re.MULTILINE)


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All that a reader can read: sources and the text of outputs."""
    found = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            found.append(output.get("text", ""))
            data = output.get("data", {})
            found += [str(value) for kind, value in data.items() if not kind.startswith("image/")]
    return found


def kinds_of_output(cell: nbformat.NotebookNode) -> set[tuple[str, ...]]:
    """What a cell gave, without its values: they differ from machine to machine."""
    return {
        (output.output_type, output.get("name", ""), *sorted(output.get("data", {})))
        for output in cell.outputs
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name not in ("__pycache__", ".ipynb_checkpoints")
    }


def test_there_are_six_and_they_are_numbered():
    assert [re.match(r"(\d\d)_[a-z_]+\.ipynb", name).group(1) for name in NAMES] == [
        f"0{number}" for number in range(1, 7)
    ]


@each_notebook
def test_it_opens_with_its_question(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    title, _, rest = first.source.partition("\n")
    assert re.fullmatch(rf"# {int(name[:2])}\. \S.+", title)
    assert re.match(r"\s*\*\*[^*]+\?\*\*\n", rest)


@each_notebook
def test_it_ends_with_three_exercises_and_their_solutions(name):
    notebook = read(name)
    end = [f"### {kind} {number}" for kind in ("Exercise", "Solution") for number in (1, 2, 3)]
    found = headings(notebook)
    assert found[-8:] == ["## Exercises", *end[:3], "## Solutions", *end[3:]]
    assert not [one for one in found[:-8] if re.match(r"#+ (Exercise|Solution)", one)]
    solutions, kinds = [], [cell.cell_type for cell in notebook.cells]
    for place, cell in enumerate(notebook.cells):
        if re.search(r"^### Solution", cell.source, re.MULTILINE):
            solutions.append(place)
    for place, after in zip(solutions, [*solutions[1:], len(kinds)]):
        assert "code" in kinds[place:after], f"solution {solutions.index(place) + 1} runs nothing"


@each_notebook
def test_it_is_saved_as_it_ran_from_a_clean_kernel(name):
    notebook = read(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@each_notebook
def test_it_is_small_and_of_no_machine(name):
    notebook = read(name)
    assert (FOLDER / name).stat().st_size < LARGEST
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    for text in texts(notebook):
        assert str(ROOT) not in text
        assert not MACHINE_PATH.search(text), text


@each_notebook
def test_it_imports_what_the_extra_brings(name):
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] in BROUGHT | sys.stdlib_module_names, module
            if modules and modules[0].startswith("flashvl"):
                private = [one.name for one in node.names if re.search(r"(^|\.)_", one.name)]
                assert not private, "only what has no leading underscore is meant for others"


@each_notebook
def test_it_runs(name, tmp_path, monkeypatch):
    """In a copy of the folder, so that whatever it writes beside itself is seen."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # nobody's own start-up files
    copy = tmp_path / "notebooks"
    shutil.copytree(FOLDER, copy)
    before = {folder: files_of(folder) for folder in (copy, FOLDER, ROOT / "weights")}
    saved, ran = read(name), read(name)
    for cell in code_cells(ran):
        cell.outputs, cell.execution_count = [], None
    # No clock decides; the limit is for a cell that hangs.
    NotebookClient(
        ran, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(copy)}}
    ).execute()
    for then, now in zip(code_cells(saved), code_cells(ran)):
        assert kinds_of_output(now) == kinds_of_output(then), f"not what is saved:\n{now.source}"
    for folder, files in before.items():
        assert files_of(folder) == files, f"{name} has changed something in {folder.name}"
