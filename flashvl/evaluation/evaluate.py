"""`flashvl evaluate`: the model card's benchmarks, or a table of one's own, answered and scored."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .. import storage
from ..chat import FlashVL
from ..checkpoint.files import tensor_files
from ..checkpoint.hub import find_model, published_models
from ..device import peak_bytes
from ..errors import ArgumentError, FlashVLError, TableError
from ..reading import one_line, read_json
from ..terminal import end_progress, show_progress, table
from ..training.processes import Processes, processes
from . import nano_set
from .answers import Answers
from .files import write_predictions
from .prompts import prompt_of
from .runner import Runner, bundles
from .scores import Predictions, Score, card, score
from .sets import SETS, find_table, name_of
from .tables import MISSING, Table, TableRow, read_predictions


def run(options: argparse.Namespace) -> None:
    """Prints a table of figures for each set, and then the model card's beside them."""
    for option in ("batch", "limit"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ArgumentError(f"--{option} must be at least 1, found {value}")
    if options.json is not None and options.json.exists():
        raise ArgumentError(f"{options.json} is there already; give another --json")
    if options.json is not None and not options.json.parent.is_dir():
        raise ArgumentError(f"there is no folder {options.json.parent}; make it first")
    if options.score:
        scores, model_type = score_files(options.score, options.rules), _model_type(options.model)
    else:
        with processes() as together:
            scores, model_type = _evaluate(options, together)
            if together.rank > 0:
                return
    print(report(scores, model_type))
    if options.json is not None:
        try:
            storage.write_new(options.json, json.dumps(scores, indent=2).encode() + b"\n")
        except OSError as error:
            raise ArgumentError(f"{options.json} cannot be written: {one_line(error)}") from error


def score_files(files: Sequence[Path], rules: str) -> dict[str, Score]:
    """Figures of predictions that are there already, by set. Raises `TableError`."""
    scores: dict[str, Score] = {}
    for file in files:
        name = name_of(file)
        if name in scores:
            raise ArgumentError(f"{file} is a second file of {name}; score it alone")
        scores[name] = score(name, read_predictions(file), rules)
    return scores


def _evaluate(options: argparse.Namespace, together: Processes) -> tuple[dict[str, Score], str]:
    """Asks for what has no answer yet and writes the predictions -> figures by set, model type.

    The figures are the first process's; the others have none.
    """
    first = together.rank == 0
    with _held(options.out) if first else nullcontext():
        names = options.data or _sets_that_are_there()
        if first and nano_set.NAME in names:
            _write_nano_table(options.out)
        together.wait()
        tables = _open_tables(names, options.out)
        if first:
            find_model(options.model, options.revision)  # one process alone downloads
            _warn_of_other_editions(tables)
        together.wait()
        flash = FlashVL.from_pretrained(
            options.model,
            together.device(options.device),
            options.dtype,
            options.revision,
            options.assumptions,
            quantize=options.quantize,
            adapter=options.adapter,
        )
        model = os.path.basename(os.path.abspath(options.model)) or "model"
        files = [Answers(options.out, f"{model}_{one.name}", together.rank) for one in tables]
        if first:
            run_settings = _settings(flash, options)
            for one, answers in zip(tables, files):
                answers.claim({"questions": one.md5, **run_settings})
        together.wait()
        predictions: dict[str, Predictions] = {}
        for one, answers in zip(tables, files):
            rows = list(one.rows())
            asked = rows[: options.limit]
            runner = Runner(flash, one, _text_of(one.name), options.reencode == "jpeg")
            _answer(runner, one.name, asked, answers, options, together)
            together.wait()
            if first:
                answers.gather([row.index for row in rows])
                predictions[one.name] = _write(one.name, asked, answers, options.out)
    # What cannot be scored keeps no later set from its answers.
    scores = {name: score(name, said, options.rules) for name, said in predictions.items()}
    return scores, flash.config.model_type


def _answer(
    runner: Runner,
    name: str,
    rows: Sequence[TableRow],
    answers: Answers,
    options: argparse.Namespace,
    together: Processes,
) -> None:
    """This process's share of the rows, as far as they have no answer; errors are tried again."""
    answers.read()
    done = {index for index, one in answers.by_index.items() if one.error is None}
    share = bundles(rows, options.batch)[together.rank :: together.count]
    total = sum(map(len, share))
    before = ready = sum(row.index in done for bundle in share for row in bundle)
    start, so_far, next_score = time.monotonic(), "", 0.0
    for bundle in share:
        for answered in runner.answer(bundle, options.batch, done):
            answers.add(answered)
            ready += len(answered)
            if together.rank > 0:
                continue
            if ready >= next_score:  # ever more seldom: it goes over all rows
                so_far, next_score = _score_so_far(name, rows, answers, options), ready * 1.1
            speed = (ready - before) / (time.monotonic() - start)
            left = (total - ready) / speed / 60
            text = f"{ready}/{total}, {speed * together.count:.1f} rows/s, {left:.0f} min left"
            show_progress(f"{name} {text}{so_far}", ready / total)
    end_progress()
    if together.rank == 0 and ready > before:
        _tell_of_the_run(name, ready - before, time.monotonic() - start, runner, together)


def _tell_of_the_run(
    name: str, rows: int, seconds: float, runner: Runner, together: Processes
) -> None:
    """One line: how many rows this process answered, how fast, and in how much memory."""
    whose = f"; this is the first of {together.count} processes" if together.count > 1 else ""
    memory = ""
    with suppress(ImportError):  # Windows does not tell it
        memory = f", {peak_bytes(runner.device) / 1e9:.2f} GB of memory at most"
    print(
        f"{name}: {rows} rows in {seconds / 60:.1f} minutes, {rows / seconds:.1f} a second"
        f"{memory}{whose}",
        file=sys.stderr,
    )


def _score_so_far(
    name: str, rows: Sequence[TableRow], answers: Answers, options: argparse.Namespace
) -> str:
    there = [row for row in rows if row.index in answers.by_index]
    try:
        figure = score(name, _predictions(there, answers), options.rules).get("score")
    except FlashVLError:  # it is told at the end
        return ""
    return f", {figure:.1f}" if isinstance(figure, int | float) else ""


def _write(name: str, rows: Sequence[TableRow], answers: Answers, out: Path) -> Predictions:
    """Writes the predictions as files, and tells of rows without one."""
    if any(row.index not in answers.by_index for row in rows):
        raise ArgumentError(f"{out} lacks answers; all processes must write to the same folder")
    errors = [one.error for row in rows if (one := answers.by_index[row.index]).error is not None]
    if errors:
        print(f"{name}: {len(errors)} rows have no answer; {errors[0]}", file=sys.stderr)
    predictions = _predictions(rows, answers)
    for suffix in (".tsv", ".xlsx"):
        write_predictions(out / f"{answers.name}{suffix}", predictions)
    return predictions


def _predictions(rows: Sequence[TableRow], answers: Answers) -> Predictions:
    """As the kit reads them from a file, where some texts are missing cells."""
    said = ((row, answers.by_index[row.index].prediction) for row in rows)
    return [(row, None if text in MISSING else text) for row, text in said]


def _text_of(name: str) -> Callable[[TableRow], str]:
    """What is asked about a row; nano knows nothing but the plain questions of its world."""
    if name == nano_set.NAME:
        return lambda row: row.question
    return lambda row: prompt_of(name, row)


def _sets_that_are_there() -> list[str]:
    """Of the model card, in VLMEvalKit's folder. Raises `TableError` if there is none."""
    there = []
    for name in SETS:
        with suppress(TableError):
            find_table(name)
            there.append(name)
    if not there:
        find_table(next(iter(SETS)))
    return there


def _open_tables(names: Sequence[str], out: Path) -> list[Table]:
    tables: dict[str, Table] = {}
    for name in names:
        if name == nano_set.NAME:
            file = out / f"{name}.tsv"
        else:
            file = find_table(name) if name in SETS else Path(name)
        found = Table(file)
        if found.name in tables:
            raise ArgumentError(f"--data has the set {found.name} twice")
        tables[found.name] = found
    return list(tables.values())


def _write_nano_table(out: Path) -> None:
    """The same in every run, so that one that is there already stays."""
    file = out / f"{nano_set.NAME}.tsv"
    if not file.exists():
        storage.write_new(file, nano_set.nano_table())


def _warn_of_other_editions(tables: Sequence[Table]) -> None:
    for one in tables:
        known = SETS.get(one.name)
        if known is not None and (one.md5, one.count) != (known.md5, known.rows):
            print(
                f"{one.path} is not the known edition: {one.count} rows with checksum {one.md5}, "
                f"known: {known.rows} with {known.md5}",
                file=sys.stderr,
            )


def _settings(flash: FlashVL, options: argparse.Namespace) -> dict[str, str | None]:
    """All that the answers depend on, beside the questions."""
    assert flash.folder is not None  # it was loaded
    digest = hashlib.sha256()
    adapter = [] if options.adapter is None else sorted(Path(options.adapter).glob("adapter_*"))
    for file in [*sorted([*flash.folder.glob("*.json"), *tensor_files(flash.folder)]), *adapter]:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while piece := opened.read(storage.MEBIBYTE):
                digest.update(piece)
    return {
        "weights": digest.hexdigest(),
        "dtype": f"{flash.model.dtype}, {flash.model.activation_dtype}".replace("torch.", ""),
        "quantize": options.quantize,
        "reencode": options.reencode,
    } | ({"assumptions": json.dumps(flash.config.assumptions)} if options.assumptions else {})


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps the folder of answers, which may be new, for this run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with storage.held(folder):
            yield
    except BlockingIOError as error:
        raise ArgumentError(f"another run is writing to {folder}; give another --out") from error


def _model_type(name: str) -> str:
    """The kind of model that predictions are held against."""
    published = published_models().get(name)
    config = published["config"] if published else read_json(find_model(name) / "config.json")
    return str(config["model_type"])


def report(scores: Mapping[str, Score], model_type: str) -> str:
    """Every set with its parts, and the model card's table of those that it has."""
    pages = []
    for name, figures in scores.items():
        lines = [[name, "figure"]]
        for part, figure in figures.items():
            if isinstance(figure, dict):
                lines += [[f"{part}: {inner}", f"{one:.4f}"] for inner, one in figure.items()]
            else:
                lines.append([part, f"{figure:.4f}"])
        if not figures:
            lines.append(["not scored", "it needs a judge, or has no answers"])
        pages.append(table(lines))
    if any(name in SETS for name in scores):
        kind = model_type.removeprefix("FlashVL").removesuffix("Config")
        pages.append(f"{table(card(scores, model_type))}\npublished: the model card on {kind}")
    return "\n\n".join(pages)
