"""What a fine-tuning is to do: from the command line, or from a recipe file with several stages.

A recipe is TOML or JSON. Its keys are the command's options without the dashes before them; those
beside "stages" hold for all stages, each of which may say otherwise of its own.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.adapter import DECODER_LAYERS
from ..errors import ArgumentError, ConfigError
from ..reading import MAX_CONFIG_BYTES, Reader, is_number, one_line, read_json, read_path, shown
from ..storage import is_there, read_bounded

PARTS = ("vision", "compressor", "decoder")
COMPUTE = ("auto", "float32", "mixed", "bfloat16")
OF_A_RUN = ("lora", "lora-alpha", "lora-pattern", "dtype", "checkpointing", "seed", "merge")
OF_A_STAGE = (
    *("name", "data", "images", "train", "rate", *(f"rate-{part}" for part in PARTS)),
    *("epochs", "steps", "batch", "accumulate", "eval", "eval-every", "skip-long", "optimizer"),
)
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Stage:
    """One stage. `rate` is None for the default; `rates` are those of parts with their own.

    A process passes `batch` samples at once, `accumulate` times a step. `held_out` is a file, or
    the share of the samples that is held out. Of `epochs` and `steps` one at most is given.
    """

    name: str
    data: tuple[Path, ...]
    images: Path | None
    train: tuple[str, ...]
    rate: float | None
    rates: Mapping[str, float]
    epochs: int | None
    steps: int | None
    batch: int
    accumulate: int
    held_out: Path | float | None
    eval_every: int | None
    skip_long: bool
    optimizer: str


@dataclass(frozen=True)
class Recipe:
    """Stages, and what holds for all of them; `rank` None: no LoRA, but the parts themselves.

    `said` is the recipe as it was written, of which resuming must find the same.
    """

    stages: tuple[Stage, ...]
    rank: int | None
    alpha: float
    pattern: str
    dtype: str
    checkpointing: bool
    seed: int
    merge: bool
    said: Mapping[str, Any]


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Raises `ArgumentError` or `ConfigError`."""
    known = (*OF_A_RUN, *OF_A_STAGE)
    said = {key: getattr(options, key.replace("-", "_"), None) for key in known}
    given = {key: value for key, value in said.items() if value is not None and value is not False}
    if options.recipe is None:
        return read_recipe(Reader(given, "the command line"))
    if given:
        raise ArgumentError(f'"{min(given)}" is given beside a recipe; write it into the file')
    return read_recipe(Reader(_contents(read_path(options.recipe, "recipe")), options.recipe))


def _contents(file: Path) -> dict[str, Any]:
    if not is_there(file):
        raise ConfigError(f"there is no recipe {file}")
    if file.suffix != ".toml":
        return read_json(file, max_bytes=MAX_CONFIG_BYTES)
    try:
        toml = importlib.import_module("tomllib")
        return toml.loads(read_bounded(file, MAX_CONFIG_BYTES).decode("utf-8"))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{file}: TOML is read from Python 3.11 on; write it as JSON") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid TOML: {one_line(error)}") from error


def read_recipe(whole: Reader) -> Recipe:
    """Raises `ConfigError` for what is missing, unknown, or of the wrong kind."""
    whole.only((*OF_A_RUN, *OF_A_STAGE, "stages"))
    shared = {key: value for key, value in whole.values.items() if key in OF_A_STAGE}
    listed = whole.values.get("stages", [{}])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(
            f'"stages" of {whole.name} must be a list of stages, found {shown(listed)}'
        )
    stages = []
    for number, values in enumerate(listed, 1):
        name = whole.name if "stages" not in whole.values else f"stage {number} of {whole.name}"
        its_own = Reader(values, name)
        its_own.only(OF_A_STAGE)
        stages.append(_stage(Reader({**shared, **its_own.values}, name), number))
    if len({stage.name for stage in stages}) < len(stages):
        raise ConfigError(f"two stages of {whole.name} have one name; each needs its own")
    rank = whole.integer("lora", maximum=100_000) if "lora" in whole.values else None
    if rank is None and not all(stage.train for stage in stages):
        raise ConfigError(
            f'{whole.name} must say what learns: "lora" with a rank, or "train" with some of '
            f"{', '.join(PARTS)}"
        )
    if rank is not None and any(stage.train or stage.rates for stage in stages):
        raise ConfigError(f'{whole.name} has "lora" and rates or a "train" of parts; choose one')
    return Recipe(
        tuple(stages),
        rank,
        whole.number("lora-alpha", 2.0 * (rank or 1)),
        whole.text("lora-pattern", DECODER_LAYERS),
        whole.choice("dtype", COMPUTE, "auto"),
        whole.boolean("checkpointing", False),
        whole.integer("seed", 0, minimum=0, maximum=MAX_SEED),
        whole.boolean("merge", False),
        dict(whole.values),
    )


def _stage(said: Reader, number: int) -> Stage:
    parts = said.values.get("train") or ()
    parts = tuple(parts.split(",")) if isinstance(parts, str) else parts
    if not isinstance(parts, list | tuple) or not all(one in PARTS for one in parts):
        raise ConfigError(
            f'"train" of {said.name} must be some of {",".join(PARTS)}, found {shown(parts)}'
        )
    rates = {part: said.number(f"rate-{part}") for part in PARTS if f"rate-{part}" in said.values}
    if not rates.keys() <= set(parts):
        raise ConfigError(f"{said.name} has a rate for a part that does not learn")
    if "epochs" in said.values and "steps" in said.values:
        raise ConfigError(f'{said.name} has "epochs" and "steps"; one follows from the other')
    return Stage(
        said.text("name", f"stage {number}"),
        _files(said),
        read_path(said.text("images", ""), "images") if "images" in said.values else None,
        tuple(part for part in PARTS if part in parts),
        said.number("rate") if "rate" in said.values else None,
        rates,
        said.integer("epochs") if "epochs" in said.values else None,
        said.integer("steps") if "steps" in said.values else None,
        said.integer("batch", 8),
        said.integer("accumulate", 1),
        _held_out(said),
        said.integer("eval-every") if "eval-every" in said.values else None,
        said.boolean("skip-long", False),
        said.choice("optimizer", ("adamw", "muon"), "adamw"),
    )


def _files(said: Reader) -> tuple[Path, ...]:
    """One file of samples, or a list of them."""
    value = said.values.get("data", "")
    files = [value] if isinstance(value, str) else value
    if not isinstance(files, list) or not files or not all(isinstance(one, str) for one in files):
        raise ConfigError(
            f'"data" of {said.name} must be a file or a list of files, found {shown(value)}'
        )
    return tuple(read_path(one, "data") for one in files)


def _held_out(said: Reader) -> Path | float | None:
    """A share between 0 and 1, or a file."""
    value = said.values.get("eval")
    if value is None:
        return None
    try:
        share = float(value) if isinstance(value, str) or is_number(value) else 0.0
    except ValueError:
        return read_path(value, "eval")
    if not 0 < share < 1:
        raise ConfigError(
            f'"eval" of {said.name} must be a file or a share between 0 and 1, found {shown(value)}'
        )
    return share
