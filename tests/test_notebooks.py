"""The course: what every notebook keeps to, and each one executed from a clean kernel."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from flashvl.cli import build_parser

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


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(notebook: nbformat.NotebookNode) -> list[str]:
    """The headings from `## ` down, in order."""
    return re.findall(r"^(##+ .+)$", prose(notebook), re.MULTILINE)


@functools.cache
def words_of_package() -> set[str]:
    sources = (file.read_text(encoding="utf-8") for file in (ROOT / "flashvl").rglob("*.py"))
    return {word for source in sources for word in re.findall(r"\w+", source)}


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
def test_it_imports_what_there_is(name):
    """Modules that its extra brings, and of flashvl only names that exist and are public."""
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] in BROUGHT | sys.stdlib_module_names, module
            for module in (one for one in modules if one.split(".")[0] == "flashvl"):
                imported = importlib.import_module(module)
                names = [one.name for one in node.names] if isinstance(node, ast.ImportFrom) else []
                for one in names:
                    found = hasattr(imported, one) or importlib.util.find_spec(f"{module}.{one}")
                    assert found, f"{module} has no {one}"
                for part in (*module.split("."), *names):
                    assert not part.startswith("_"), f"{part} is not meant for others"


@each_notebook
def test_what_its_prose_names_exists(name):
    """Commands, files and links; and each name in code letters, in its cells or the package."""
    notebook = read(name)
    (commands,) = (set(one.choices) for one in build_parser()._actions if one.choices)
    known = words_of_package() | set(
        re.findall(r"\w+", "\n".join(cell.source for cell in code_cells(notebook)))
    )
    spans = re.findall(r"`([^`\n]+)`", prose(notebook))
    assert spans
    for span in spans:
        if span.startswith("flashvl "):
            assert span.split()[1] in commands, span
        elif re.fullmatch(r"(flashvl|weights|tests|notebooks)/[\w/.-]+", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(.*\))?", span):
            missing = set(re.findall(r"\w+", span.partition("(")[0])) - known
            assert not missing, span
    for link in re.findall(r"\]\(([^)#]+)\)", prose(notebook)):
        assert "://" in link or (FOLDER / link).exists(), link


@pytest.mark.slow
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
