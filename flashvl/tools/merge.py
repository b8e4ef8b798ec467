"""`flashvl merge`: a model and an adapter become a model in the published layout."""

from __future__ import annotations

import argparse

from ..chat import FlashVL
from ..checkpoint.files import read_headers
from ..checkpoint.hub import find_model

STORED = {frozenset({"BF16"}): "bfloat16", frozenset({"F16"}): "float16"}


def run(options: argparse.Namespace) -> None:
    """Writes a new folder. Raises `CheckpointError` if it holds a model."""
    folder = find_model(options.model, options.revision)
    stored = frozenset(header.dtype for header in read_headers(folder).values())
    dtype = STORED.get(stored, "float32") if options.dtype == "auto" else options.dtype
    flash = FlashVL.from_pretrained(folder, "cpu", dtype, adapter=options.adapter)
    flash.merge_adapter()
    flash.save_pretrained(options.out)
    print(f"merged; try: flashvl chat --model {options.out}")
