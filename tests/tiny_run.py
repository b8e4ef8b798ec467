"""A recipe of seconds, in this process or as a process of its own: `python tiny_run.py train ...`.

There it saves and logs all the time, so that a kill meets every moment.
"""

from __future__ import annotations

import copy
import dataclasses
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until flashvl's own main runs

from flashvl.checkpoint.hub import weights_folder
from flashvl.cli import main
from flashvl.input.tokenizer import Tokenizer
from flashvl.nano import starting_values
from flashvl.nano import train as train_module
from flashvl.nano.recipe import NANO, READER, TOWER, Recipe, Stage
from flashvl.training import loop, progress

# The whitening of nano draws 400 tiles.
FEW_TILES = dataclasses.replace(starting_values.WHITENING, batch=12)


def tiny_recipe() -> Recipe:
    config = copy.deepcopy(NANO.config)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config["vision_config"] |= small | {"num_attention_heads": 2}
    config["llm_config"] |= small | {"num_attention_heads": 2, "num_key_value_heads": 1}
    config["intermediate_size"] = 16
    few = {"questions": 4, "rounds": 3, "sides": (80, 300)}
    stages = (
        Stage("tower", 30, 2e-2, "tiles", TOWER, things=(1, 3), digits=2, batch=8),
        Stage("answers", 30, 2e-2, "scenes", READER, things=(1, 2), digits=2, batch=2, **few),
        Stage("together", 4, 1e-3, "scenes", TOWER + READER, (1, 4), digits=4, batch=2, **few),
    )
    return Recipe(config, NANO.vocabulary, stages)


def shipped_tokenizer() -> Tokenizer:
    """The one that the recipe trains again in a slow test."""
    return Tokenizer.from_folder(weights_folder() / "nano")


if __name__ == "__main__":
    train_module.RECIPES["nano"] = tiny_recipe()
    train_module.train_tokenizer = lambda recipe: shipped_tokenizer()
    starting_values.WHITENING = FEW_TILES
    loop.SAVE_EVERY = 0.1
    progress.LOG_EVERY = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
