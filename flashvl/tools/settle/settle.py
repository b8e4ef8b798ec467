"""`flashvl settle`: under which assumptions a model was trained, asked of the model itself.

Under the right ones it finds right answers likely, under wrong ones it does not. It is asked about
drawn scenes, whose right answers are known; or the answers are those that the published code gave,
and then the right assumptions make each of their tokens the likeliest, which is proof.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from statistics import mean

import torch

from ...chat import FlashVL
from ...config import TilerConfig
from ...device import device_failure_as_error
from ...errors import ArgumentError
from ...generation.generate import LAST
from ...input.image import load_image
from ...model.network import FlashVLModel
from ...reading import MAX_INTEGER, shown
from ...terminal import end_progress, show_progress
from ..new_file import check_new, write_new
from ..trace.recorder import Recorder
from ..trace.trace import shapes_of_prompt
from . import report
from .answers import read_answers
from .measure import MAX_KEPT_BYTES, Measure, Measured, Sample
from .scenes import scene_sample
from .search import FIELDS_ASKED, Search, Values, evidence, fields_to_ask

TRIED = 2  # samples that are measured beforehand, to tell how long all will take
COUNTED = 8  # samples whose operations are counted
SHUFFLED = 32  # samples that are asked about with another one's picture
PROGRESS_EVERY = 0.2  # seconds


def run(options: argparse.Namespace) -> None:
    """Prints how long it will take, the table and the verdicts. Raises a `FlashVLError`.

    An interruption ends the search; what is known is printed and written all the same.
    """
    check(options)
    flash = FlashVL.from_pretrained(
        options.model, options.device, options.dtype, options.revision, options.assumptions
    )
    asked = fields_to_ask(flash.config, flash.tokenizer.control, options.only)
    if not asked:
        raise ArgumentError(
            f"of this model nothing is open in {', '.join(options.only)}: it has no margin, one "
            "tile alone, or no such control tokens"
        )
    own = options.answers is not None
    measure, tiler = Measure(flash, own), flash.config.tiler
    if own:
        samples = read_answers(options.answers, flash.tokenizer)
    else:
        samples = [scene_sample(index, tiler) for index in range(options.scenes)]

    def measured(values: Values, number: int) -> Measured:
        return measure(samples[number], values)

    search = Search(flash.config, measured, len(samples), asked, own)
    interruption, sees = None, None
    with device_failure_as_error("asking the model"):
        try:
            counts = [operations(flash, one) for one in samples[:COUNTED]]
            print(what_is_asked(flash, search, samples, mean(counts)), flush=True)
            seconds = first_passes(measure, search, samples, counts)
            if not own and ask_briefly(measure, search, tiler):
                samples[:] = [scene_sample(one, tiler, briefly=True) for one in range(len(samples))]
            all_of_them = report.duration(search.planned() * seconds)
            print(f"Here that takes {all_of_them} at most.\n", flush=True)
            search.step = Progress(search)
            search.run()
            if not own:
                sees = what_it_sees(measure, search, samples)
                if report.is_blind(sees):
                    search.best = search.stated()
        except KeyboardInterrupt as error:
            interruption = error
        end_progress()
    result = report.as_json(options.model, search, samples, sees)
    print(report.as_text(search, samples, sees, flash.tokenizer))
    if options.json is not None:
        write_new(options.json, "--json", json.dumps(result, indent=2).encode() + b"\n")
    if options.out is not None:
        write_new(options.out, "--out", json.dumps(search.best, indent=2).encode() + b"\n")
    if interruption is not None:
        raise interruption


def check(options: argparse.Namespace) -> None:
    """Raises `ArgumentError` before anything is loaded."""
    if not 1 <= options.scenes <= MAX_INTEGER:
        raise ArgumentError(
            f"--scenes must be from 1 to {MAX_INTEGER}, found {shown(options.scenes)}"
        )
    for name in options.only:
        if name not in FIELDS_ASKED:
            raise ArgumentError(
                f"--only {shown(name)} is no field that is asked; known: {', '.join(FIELDS_ASKED)}"
            )
    for file, option in ((options.out, "--out"), (options.json, "--json")):
        if file is not None:
            check_new(file, option)


def what_is_asked(
    flash: FlashVL, search: Search, samples: Sequence[Sample], operations: float
) -> str:
    """How much there is to do at most, of so many operations a pass, and what memory it takes."""
    questions = sum(len(one.conversations) for one in samples)
    alternatives, pairs = sum(map(len, search.asked.values())), len(search.pairs())
    weights = sum(one.nbytes for one in flash.model.parameters())
    return (
        f"{questions} questions about {len(samples)} pictures, {alternatives} alternatives of "
        f"{len(search.asked)} fields, {pairs} {'pair' if pairs == 1 else 'pairs'} of fields.\n"
        f"All fields and pairs once take {search.planned():,} passes at most, of {operations:.2g} "
        "operations each.\nWhat is beyond doubt stops early; mostly all is asked twice; --scenes "
        f"and --only shorten it.\nMemory: {weights / 1e9:.2g} GB of weights, at most "
        f"{MAX_KEPT_BYTES / 1e9:.2g} GB of what the tower made of tiles, and a pass."
    )


def first_passes(
    measure: Measure, search: Search, samples: Sequence[Sample], counts: Sequence[int]
) -> float:
    """Seconds that a pass takes, by a few of them; `counts` are operations of some samples.

    Passes differ in their tiles: their time is taken in proportion to their operations.
    """
    show_progress("the first passes tell how long all will take", 0)
    start, tried = time.monotonic(), counts[:TRIED]
    for sample, _ in zip(samples, tried):
        measure(sample, search.best)
    end_progress()
    return (time.monotonic() - start) * mean(counts) / sum(tried)


def ask_briefly(measure: Measure, search: Search, tiler: TilerConfig) -> bool:
    """Whether right answers are likelier if the questions ask for short ones in so many words."""
    plain, brief = (
        sum(
            math.fsum(measure(scene_sample(index, tiler, briefly), search.best).losses)
            for index in range(TRIED)
        )
        for briefly in (False, True)
    )
    return brief < plain


def operations(flash: FlashVL, sample: Sample) -> int:
    """Of a pass over a picture and all that is asked about it, as `flashvl trace` counts them."""
    with torch.device("meta"):
        model = FlashVLModel(flash.config)
    tokens = sum(
        flash.processor.encode(messages).shape[1] + len(flash.tokenizer.encode(answer))
        for messages, answer in sample.conversations
    )
    recorder = Recorder(model, depth=1)
    with recorder:
        model(*shapes_of_prompt(flash.config, load_image(sample.picture), tokens), logits_at=LAST)
    return sum(row.operations for row in recorder.stages().values())


class Progress:
    """A line on the terminal: what is compared, and how long the round will take at most."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.start, self.next, self.passes = time.monotonic(), 0.0, 0

    def __call__(self, what: str) -> None:
        """Before each pass."""
        now = time.monotonic() - self.start
        planned = self.search.planned() * self.search.rounds
        if now >= self.next:
            self.next = now + PROGRESS_EVERY
            each = now / max(self.passes, 1)
            left = report.duration(each * max(planned - self.passes, 0)) if self.passes else "..."
            text = f"round {self.search.rounds}: {what}, at most {left} left"
            show_progress(text, self.passes / planned)
        self.passes += 1


def what_it_sees(
    measure: Measure, search: Search, samples: Sequence[Sample]
) -> tuple[float, float]:
    """How much less likely right answers are with another scene's picture: nats, standard errors.

    A model that cannot see finds them as likely, and nothing that it says of pictures counts.
    """
    shown = samples[:SHUFFLED]
    own = [measure(one, search.best) for one in shown]
    others = [*shown[1:], shown[0]]
    shuffled = [measure(one, search.best, other.picture) for one, other in zip(shown, others)]
    return evidence(shuffled, own)
