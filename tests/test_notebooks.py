"""The course: what every notebook keeps to; each one, its solutions and its figures executed."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

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
LONGEST = 1_500  # words of prose
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


def solutions(name: str) -> Path:
    return FOLDER / "solutions" / Path(name).with_suffix(".py").name


@each_notebook
def test_it_ends_with_three_exercises_and_names_their_solutions(name):
    notebook = read(name)
    end = ["## Exercises", *(f"### Exercise {number}" for number in (1, 2, 3))]
    found = headings(notebook)
    assert found[-4:] == end
    assert not [one for one in found[:-4] if re.match(r"#+ Exercise", one)]
    assert not [one for one in found if "Solution" in one]
    file = f"solutions/{solutions(name).name}"
    assert f"[{file}]({file})" in notebook.cells[-1].source


@each_notebook
def test_each_exercise_has_a_solution_that_asserts_something(name):
    """`exercise_1` to `exercise_3`, by themselves or through what they call."""
    tree = ast.parse(solutions(name).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = ast.dump(tree.body[-1])  # if __name__ == "__main__"
    for exercise in ("exercise_1", "exercise_2", "exercise_3"):
        inside = list(ast.walk(functions[exercise]))
        assert any(isinstance(node, ast.Assert) for node in inside) or "assert_" in ast.dump(
            functions[exercise]
        ), exercise
        assert f"id='{exercise}'" in called, exercise


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
    assert len(re.findall(r"\S*\w\S*", prose(notebook))) <= LONGEST
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
    """Commands, files and links; and each name in code letters, in its cells, its
    solutions or the package."""
    notebook = read(name)
    (commands,) = (set(one.choices) for one in build_parser()._actions if one.choices)
    sources = [cell.source for cell in code_cells(notebook)]
    sources.append(solutions(name).read_text(encoding="utf-8"))
    known = words_of_package() | set(re.findall(r"\w+", "\n".join(sources)))
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


@pytest.mark.slow
@each_notebook
def test_its_solutions_run(name):
    """From the folder of the notebooks, as they say; they write nothing."""
    before = files_of(FOLDER)
    done = subprocess.run(
        [sys.executable, f"solutions/{solutions(name).name}"],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert files_of(FOLDER) == before


def write_figures(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER / "figures.py", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_each_figure_is_written_as_svg_with_larger_type(tmp_path):
    name = "07_checkpoint"
    done = write_figures(tmp_path / "figures", name)
    assert done.returncode == 0, done.stderr
    drawn = [
        output
        for cell in code_cells(read(f"{name}.ipynb"))
        for output in cell.outputs
        if "<Figure" in output.get("data", {}).get("text/plain", "")
    ]
    files = sorted((tmp_path / "figures").iterdir())
    assert [file.name for file in files] == [
        f"{name}_{number:02}.svg" for number in range(1, len(drawn) + 1)
    ]
    for file in files:
        assert ElementTree.parse(file).getroot().tag.endswith("}svg")
    # Matplotlib writes each text as a group of paths, scaled by a hundredth of its size in points.
    sizes = {float(one) for one in re.findall(r"scale\(([\d.]+) -", files[0].read_text())}
    assert max(sizes) > 0.12


def test_figures_of_a_folder_with_files_or_of_no_notebook_are_refused(tmp_path):
    (tmp_path / "mine.svg").write_text("mine")
    for arguments in ((tmp_path,), (tmp_path / "new", "12_nothing")):
        done = write_figures(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert (tmp_path / "mine.svg").read_text() == "mine"
    assert not (tmp_path / "new").exists()
