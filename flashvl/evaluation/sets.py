"""The benchmarks of the model card: their files, their prompts, their rules, their figures.

Source: VLMEvalKit, whose wrapper of Flash-VL asks these prompts, and the model card. The kit has
MMBench in two splits; which one the card used is not known, so both stand beside its figure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import TableError

# How the answers of a set are scored; `scores.py` says what each does.
Rule = Literal["letter", "rotations", "yes or no", "hallusion", "contained", "math", "judge"]

SHORT = " Answer the question using a single word or phrase."
REASON = " Anylyze the reason for the answer."  # spelt so in the kit


@dataclass(frozen=True)
class BenchmarkSet:
    """One set. `rows` counts those with a picture.

    `suffix` follows the question in the prompt; None: the options follow, as `prompts.py` says.
    `published` are the card's figures of Dynamic-ISS, Dynamic and Static, the order of
    `MODEL_KINDS`; `scale` divides a figure in the card's average.
    """

    name: str
    title: str
    rows: int
    md5: str
    suffix: str | None
    rule: Rule
    published: tuple[float, float, float]
    scale: float = 1


_EN, _CN = (79.1, 78.4, 78.4), (76.7, 74.9, 74.7)

# fmt: off
_ALL = (
    BenchmarkSet("MMMU_DEV_VAL", "MMMU val", 1050, "585e8ad75e73f75dcad265dfd0417d64",
                 None, "letter", (42.9, 42.9, 43.6)),
    BenchmarkSet("MMBench_DEV_EN", "MMBench en", 4329, "b6caf1133a01c6bb705cf753bb527ed8",
                 None, "rotations", _EN),
    BenchmarkSet("MMBench_TEST_EN", "MMBench en", 6666, "6939fadb0ce626fefc0bdc9c64efc528",
                 None, "rotations", _EN),
    BenchmarkSet("MMBench_DEV_CN", "MMBench cn", 4329, "08b8fc3324a5ed74155350f57be69fbd",
                 None, "rotations", _CN),
    BenchmarkSet("MMBench_TEST_CN", "MMBench cn", 6666, "7e1239baf0ee4c8b513e19705a0f317e",
                 None, "rotations", _CN),
    BenchmarkSet("MMStar", "MMStar", 1500, "e1ecd2140806c1b1bbf54b43372efb9e",
                 None, "letter", (54.1, 54.4, 53.8)),
    BenchmarkSet("MathVista_MINI", "MathVista testmini", 1000, "f199b98e178e5a2a20e7048f5dcb0464",
                 "", "math", (61.5, 58.1, 59.3)),
    BenchmarkSet("AI2D_TEST", "AI2D test", 3088, "0f593e0d1c7df9a3d69bf1f947e71975",
                 None, "letter", (74.4, 74.1, 74.2)),
    BenchmarkSet("MMVet", "MMVet", 218, "748aa6d4aa9d4de798306a63718455e3",
                 REASON, "judge", (50.7, 52.7, 47.3)),
    BenchmarkSet("HallusionBench", "HallusionBench", 951, "0c23ac0dc9ef46832d7a24504f2a0c7c",
                 " Please answer yes or no." + SHORT, "hallusion", (49.0, 45.5, 43.5)),
    BenchmarkSet("OCRBench", "OCRBench", 1000, "e953d98a987cc6e26ef717b61260b778",
                 REASON, "contained", (843, 831, 764), scale=10),
    BenchmarkSet("MME", "MME", 2374, "b36b43c3f09801f5d368627fb92187c3",
                 SHORT, "yes or no", (1850, 1866, 1715), scale=28),
    BenchmarkSet("SEEDBench_IMG", "SEEDBench", 14232, "68017231464752261a2526d6ca3a10c0",
                 None, "letter", (74.5, 73.6, 73.6)),
)
# fmt: on
SETS = {one.name: one for one in _ALL}


def name_of(file: Path) -> str:
    """The set that a file is of, told from NAME.tsv, NAME_local.tsv, MODEL_NAME.tsv or .xlsx.

    The file's own name without its ending if it is none of ours.
    """
    stem = file.stem.removesuffix("_local")
    fitting = [name for name in SETS if stem == name or stem.endswith(f"_{name}")]
    return max(fitting, key=len, default=file.stem)


def find_table(name: str) -> Path:
    """The file of a set in VLMEvalKit's folder, `$LMUData` or `~/LMUData`. Raises `TableError`."""
    folder = Path(os.environ.get("LMUData") or Path.home() / "LMUData")  # noqa: SIM112
    for file in (folder / f"{name}.tsv", folder / f"{name}_local.tsv"):
        if file.is_file():
            return file
    raise TableError(
        f"there is no {name}.tsv in {folder}; download it with VLMEvalKit, "
        "or set LMUData to the folder that has it"
    )
