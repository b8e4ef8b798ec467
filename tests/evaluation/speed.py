"""How much faster a table is evaluated than asked row by row with `chat`, in one run.

    python tests/evaluation/speed.py --model nano --pictures 50
    python tests/evaluation/speed.py --random 2b --pictures 2 --new 4

The rows are those of `flashvl evaluate --data nano`, four questions to a picture. Both ways take
turns, picture by picture or batch by batch, and must give the same answers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flashvl import FlashVL
from flashvl.evaluation import runner as runner_module
from flashvl.evaluation.nano_set import nano_table
from flashvl.evaluation.runner import Runner, bundles, load_picture
from flashvl.evaluation.tables import Table, TableRow
from flashvl.generation.sampling import Sampling
from flashvl.tools.bench.random_checkpoint import NAMES, kept_random_checkpoint

Answers = dict[str, "str | None"]  # by index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="nano", help="nano or a folder (default: nano)")
    which.add_argument("--random", choices=tuple(NAMES), help="random weights of these sizes")
    parser.add_argument("--pictures", type=int, default=50, metavar="N")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="rows together")
    parser.add_argument("--new", type=int, default=512, metavar="N", help="tokens of an answer")
    options = parser.parse_args()
    folder = kept_random_checkpoint(options.random) if options.random else options.model
    flash = FlashVL.from_pretrained(folder)
    runner_module.SAMPLING = Sampling(max_new_tokens=options.new)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "nano.tsv")
        file.write_bytes(nano_table(options.pictures))
        compare(flash, Table(file), options.batch, options.new)


def compare(flash: FlashVL, table: Table, batch: int, new: int) -> None:
    """Prints questions a second of both ways and their ratio."""
    runner = Runner(flash, table, lambda row: row.question)
    seconds = {"chat": 0.0, "evaluate": 0.0}
    asked = equal = 0

    def timed(way: str, ask: Callable[[], Answers]) -> Answers:
        start = time.perf_counter()
        answers = ask()
        seconds[way] += time.perf_counter() - start
        return answers

    for bundle in bundles(list(table.rows()), batch):
        alone = timed("chat", lambda rows=bundle: one_by_one(flash, table, rows, new))
        together = timed(
            "evaluate",
            lambda rows=bundle: {
                one.index: one.prediction for some in runner.answer(rows, batch) for one in some
            },
        )
        asked += len(bundle)
        equal += sum(alone[index] == said for index, said in together.items())
        speeds = ", ".join(f"{way} {asked / taken:.3g}" for way, taken in seconds.items())
        ratio = seconds["chat"] / seconds["evaluate"]
        print(f"{asked} questions, a second: {speeds}: {ratio:.2f} x; {equal} answers are equal")
        sys.stdout.flush()


def one_by_one(flash: FlashVL, table: Table, rows: list[TableRow], new: int) -> Answers:
    answers: Answers = {}
    for row in rows:
        shown = load_picture(table.picture(row), reencode=True)
        asked = [{"role": "user", "content": row.question}]
        answers[row.index] = flash.chat(shown, asked, max_new_tokens=new)
    return answers


if __name__ == "__main__":
    main()
