"""`flashvl settle`: under which assumptions a model was trained, asked of the model itself.

Under the right ones it finds right answers likely, under wrong ones it does not. It is asked about
drawn scenes, whose right answers are known; or the answers are those that the published code gave,
and then the right assumptions make each of their tokens the likeliest, which is proof.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
from PIL import Image

from ...chat import FlashVL
from ...config import FlashVLConfig
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
    measure = Measure(flash, ends=options.answers is None)
    with device_failure_as_error("asking the model"):
        if options.answers is None:
            samples = choose_scenes(flash, measure, options.scenes)
        else:
            samples = read_answers(options.answers, flash.tokenizer)

        def measured(values: Values, number: int) -> Measured:
            return measure(samples[number], values)

        own = options.answers is not None
        search = Search(flash.config, measured, len(samples), asked, own)
        interruption, sees = None, None
        try:
            print(f"{how_long(flash, measure, search, samples)}\n", flush=True)
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


def choose_scenes(flash: FlashVL, measure: Measure, count: int) -> list[Sample]:
    """The scenes, asked about in the way whose right answers are likelier: plainly or briefly."""
    tiler = flash.config.tiler
    losses = [
        sum(sum(measure(scene_sample(index, tiler, briefly), {}).losses) for index in range(TRIED))
        for briefly in (False, True)
    ]
    briefly = losses[1] < losses[0]
    return [scene_sample(index, tiler, briefly) for index in range(count)]


def how_long(flash: FlashVL, measure: Measure, search: Search, samples: Sequence[Sample]) -> str:
    """What will be asked, and how long it will take at most, by the time of the first passes.

    Passes differ in their tiles: the time of one is taken in proportion to its operations.
    """
    texts = [text_tokens(flash, one) for one in samples[:COUNTED]]
    pictures = [load_image(one.picture) for one in samples[:COUNTED]]
    counts = [operations(flash.config, *one) for one in zip(pictures, texts)]
    start = time.monotonic()
    for number in range(min(TRIED, len(samples))):
        search.measure(search.best, number)
    taken = (time.monotonic() - start) / sum(counts[:TRIED])
    mean, passes = sum(counts) / len(counts), search.planned()
    weights = sum(one.nbytes for one in flash.model.parameters())
    questions = sum(len(one.conversations) for one in samples)
    alternatives = sum(map(len, search.asked.values()))
    pairs = len(search.pairs())
    return (
        f"{questions} questions about {len(samples)} pictures, {alternatives} alternatives of "
        f"{len(search.asked)} fields, {pairs} {'pair' if pairs == 1 else 'pairs'} of fields.\n"
        f"All fields and pairs once take {passes:,} passes at most, of {mean:.2g} operations each: "
        f"{report.duration(passes * mean * taken)} here at most.\n"
        "What is beyond doubt stops early; mostly all is asked twice; --scenes and --only shorten "
        f"it.\nMemory: {weights / 1e9:.2g} GB of weights, at most {MAX_KEPT_BYTES / 1e9:.2g} GB of "
        "what the tower made of tiles, and a pass."
    )


def text_tokens(flash: FlashVL, sample: Sample) -> int:
    """Tokens of all questions about a picture side by side, the picture's not counted."""
    return sum(
        flash.processor.encode(messages).shape[1] + len(flash.tokenizer.encode(answer))
        for messages, answer in sample.conversations
    )


def operations(config: FlashVLConfig, picture: Image.Image, tokens: int) -> int:
    """Of a pass over a picture and so many tokens of text, as `flashvl trace` counts them."""
    with torch.device("meta"):
        model = FlashVLModel(config)
    recorder = Recorder(model, depth=1)
    with recorder:
        model(*shapes_of_prompt(config, picture, tokens), logits_at=LAST)
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
