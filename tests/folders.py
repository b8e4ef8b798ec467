"""Checkpoint folders in tests: load them, change them, and see how they are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashvl import FlashVL
from flashvl.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "llm.model.norm.weight"


def load(folder, **options) -> FlashVL:
    return FlashVL.from_pretrained(folder, device="cpu", **options)


def rewrite(folder: Path, **changes) -> None:
    """Replaces tensors of the single file; None takes one out."""
    tensors = load_file(folder / SINGLE) | changes
    save_file(
        {name: value for name, value in tensors.items() if value is not None}, folder / SINGLE
    )


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def in_shards(folder: Path) -> dict[str, str]:
    """The single file as two shards and an index; returns the index's map."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        part = {name: value for name, value in tensors.items() if ("adp" in name) == (number == 2)}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def assert_same_weights(one: FlashVL, two: FlashVL) -> None:
    ours, theirs = one.model.state_dict(), two.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def refusal(folder: Path, kind=CheckpointError, **options) -> str:
    with pytest.raises(kind) as refused:
        load(folder, **options)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


@contextmanager
def no_rights() -> Iterator[None]:
    """Files' permissions count, also where tests are run by root."""
    if getattr(os, "geteuid", lambda: 1)() != 0:
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)
