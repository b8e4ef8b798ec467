"""Writes each figure of the course as an SVG file with large type, for slides and projectors.

    python notebooks/figures.py FOLDER              # of all notebooks
    python notebooks/figures.py FOLDER 05_decoder   # of one or several

Each notebook is executed for it, in a kernel of its own, so this takes as long as they take.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.ipynb"))}
# After a notebook's own settings: figures as SVG, type a third larger than on the page.
LARGE = """
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("svg")
plt.rcParams["font.size"] *= 1.35
"""


def svg_figures(notebook: Path) -> list[str]:
    """The figures of a notebook in their order, each the text of an SVG file."""
    content = nbformat.read(notebook, as_version=4)
    for place, cell in enumerate(content.cells):
        if "plt.rcParams.update(" in cell.source:
            content.cells.insert(place + 1, nbformat.v4.new_code_cell(LARGE.strip()))
            break
    where = {"metadata": {"path": str(notebook.parent)}}
    NotebookClient(content, timeout=1800, kernel_name="python3", resources=where).execute()
    outputs = [o for cell in content.cells for o in cell.get("outputs", [])]
    return [o.data["image/svg+xml"] for o in outputs if "image/svg+xml" in o.get("data", {})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("notebooks", nargs="*", default=list(NOTEBOOKS), help="default: all")
    options = parser.parse_args()
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        parser.error(f"{options.folder} is there already and is no empty folder; name another")
    for name in options.notebooks:
        if name not in NOTEBOOKS:
            parser.error(f"there is no notebook {name!r}; there are {', '.join(NOTEBOOKS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.notebooks:
        for number, figure in enumerate(svg_figures(NOTEBOOKS[name]), 1):
            file = options.folder / f"{name}_{number:02}.svg"
            file.write_text(figure, encoding="utf-8")
            print(file)


if __name__ == "__main__":
    main()
