"""A checkpoint of random weights at the real sizes, to measure with where there are no real ones.

`python -m flashvl.tools.bench.random_checkpoint FOLDER [NAME]` writes one, about 5 GB for a 2B.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from ...chat import FlashVL
from ...checkpoint.hub import own_cache, published_models, weights_folder
from ...config import FlashVLConfig
from ...errors import CheckpointError, FlashVLError
from ...input.tokenizer import Tokenizer
from ...model.network import FlashVLModel
from ...reading import read_json
from ...terminal import end_progress, show_progress

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What `flashvl bench --random` calls a model -> whose shapes it has.
NAMES = {"2b": next(iter(published_models())), "300m": "300m", "nano": "nano"}
# Of the 2B's shape with fewer layers and words, to train on a laptop.
FEWER = {"vision_config": {"num_hidden_layers": 1}}
FEWER["llm_config"] = {"num_hidden_layers": 4, "vocab_size": 8192}


def kept_random_checkpoint(name: str) -> Path:
    """The folder of a random model of `NAMES`, written at the first call into the user's cache.

    Another process writes it, whose memory does not count in this one, beside its place; it is
    moved there once it is whole. Raises `CheckpointError` if it cannot be written.
    """
    folder = own_cache() / f"random-{name}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            write_in_other_process(NAMES[name], Path(beside) / folder.name)
            if not folder.is_dir():  # unless another bench was faster
                os.replace(Path(beside) / folder.name, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    return folder


def write_in_other_process(name: str, folder: Path) -> None:
    """`write_random_checkpoint` with a progress line. Raises `CheckpointError` if it fails."""
    with torch.device("meta"):
        model = FlashVLModel(config_of(name))
    wanted = 2 * sum(weight.numel() for weight in model.parameters())  # bytes in bfloat16
    command = [sys.executable, "-m", "flashvl.tools.bench.random_checkpoint", str(folder), name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as writer:
        try:
            while writer.poll() is None:
                written = sum(file.stat().st_size for file in _files(folder))
                text = f"writing random weights: {written / 1e9:.1f} of {wanted / 1e9:.1f} GB"
                show_progress(text, written / wanted)
                time.sleep(0.2)
        finally:
            writer.kill()
        end_progress()
        if writer.returncode:
            said = writer.communicate()[1].strip().splitlines()
            reason = said[-1] if said else "the process that writes them was ended"
            raise CheckpointError(f"the random weights were not written: {reason}")


def _files(folder: Path) -> list[Path]:
    """Every file below a folder that another process is writing."""
    return [Path(where, name) for where, _, names in os.walk(folder) for name in names]


def write_random_checkpoint(name: str, folder: Path) -> None:
    """Writes the shapes of "nano" or of a published model with random weights.

    Their dtype is torch's default. The tokenizer knows bytes alone. Raises `CheckpointError` if
    `folder` holds a model already.
    """
    tokenizer = byte_tokenizer()
    stop_ids = [tokenizer.control[token] for token in CONTROL_TOKENS[::2]]
    FlashVL(FlashVLModel(config_of(name)), tokenizer, stop_ids).save_pretrained(folder)


def config_of(name: str) -> FlashVLConfig:
    """Of "nano", "300m" or a published repository."""
    if name == "nano":
        return FlashVLConfig.from_dict(read_json(weights_folder() / "nano" / "config.json"))
    if name == "300m":
        whole = published_models()[NAMES["2b"]]["config"]
        fewer = {section: whole[section] | changes for section, changes in FEWER.items()}
        return FlashVLConfig.from_dict(whole | fewer)
    return FlashVLConfig.from_dict(published_models()[name]["config"])


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: each byte a token, then ChatML's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(CONTROL_TOKENS))
    return Tokenizer(json.loads(raw.to_str()))


def main() -> int:
    """What the other process does -> its exit code."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint of the real sizes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="?", default=NAMES["2b"], help="nano or a repository")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # of the published files; this process does no more
    try:
        write_random_checkpoint(options.name, options.folder)
    except FlashVLError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
