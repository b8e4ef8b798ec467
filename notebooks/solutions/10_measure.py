"""Solutions to the exercises of 10_measure.ipynb.

Run from the folder of the notebooks: python solutions/10_measure.py
"""

import tempfile
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from flashvl.evaluation.evaluate import score_files
from flashvl.evaluation.files import write_predictions
from flashvl.evaluation.nano_set import nano_table
from flashvl.evaluation.tables import Table
from flashvl.nano.world.things import COLORS, DIGITS, SHAPES
from flashvl.nano.world.wordings import SHAPES_ZH


def exercise_1() -> None:
    """Unpaired, the variance of a difference is 2 p (1 - p) / n; two errors must be below 0.008.

    Paired, with a share d of rows on which they differ, it is (d - gap²) / n.
    """
    p, gap, differ = 0.65, 0.008, 0.1
    unpaired = ceil(2 * p * (1 - p) * (2 / gap) ** 2)
    paired = ceil((differ - gap**2) * (2 / gap) ** 2)
    print(f"{unpaired:,} questions unpaired, {paired:,} paired")
    assert 2 * sqrt(2 * p * (1 - p) / unpaired) <= gap
    assert paired < unpaired / 4


def exercise_2() -> None:
    """One apart in some two of five tries: eleven differences have eleven chances.

    The average is apart by 0.8 in one of five, for 0.8 is hardly more than one of its errors; of
    these much comes from MMVet, with its 218 rows. A large difference on one benchmark is weaker
    evidence than it looks, and it is chosen after the fact at that.
    """
    sizes = np.array([900, 4329, 4329, 1500, 1000, 3088, 218, 951, 1000, 2374, 14232])
    shares = np.array([43, 79, 76, 54, 60, 74, 51, 47, 84, 66, 74]) / 100
    random = np.random.default_rng(0)
    one, other = random.binomial(sizes, shares, size=(2, 20_000, len(sizes))) / sizes
    errors = np.sqrt((one * (1 - one) + other * (1 - other)) / sizes)
    some = (np.abs(one - other) > 2 * errors).any(axis=1).mean()
    average = (np.abs((one - other).mean(axis=1)) >= 0.008).mean()
    print(f"some benchmark apart: {some:.0%}; the average apart by 0.8 points: {average:.1%}")
    assert 0.3 < some < 0.5
    assert 0.1 < average < 0.35


def exercise_3() -> None:
    """Say all that could be right at once: every word, every digit, in every language.

    "Contained" asks whether the answer is among what was said. With options, the text of all
    options is worth nothing, for exactly one must be there. `exact` gives it away: it is 0.
    """
    absent = [f"There is no {one}." for one in (*SHAPES, "number")]
    absent += [f"没有{one}。" for one in (*(names[0] for names in SHAPES_ZH.values()), "数字")]
    counts = [*DIGITS, *(f"{count}个" for count in range(5))]
    everything = " ".join([*COLORS, *SHAPES, *counts, *absent])
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "questions.tsv"
        table.write_bytes(nano_table(40))
        file = Path(folder) / "cheat_questions.tsv"
        write_predictions(file, [(row, everything) for row in Table(table).rows()])
        (figures,) = score_files([file], "2025").values()
    print({name: round(figures[name], 3) for name in ("open", "exact", "choice", "count")})
    assert isinstance(figures["open"], float)
    assert figures["count"] == 1
    assert figures["open"] > 0.3
    assert figures["exact"] == 0


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
