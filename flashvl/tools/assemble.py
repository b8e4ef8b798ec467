"""`flashvl assemble`: a Flash-VL from a tower and a decoder, before its training begins."""

from __future__ import annotations

import argparse

import torch

from ..checkpoint.assemble import assemble
from ..checkpoint.hub import find_model
from ..checkpoint.published import read_stop_ids
from ..checkpoint.save import save_checkpoint
from ..errors import ArgumentError
from ..input.prompt import TURN_END
from ..reading import MAX_INTEGER, read_path


def run(options: argparse.Namespace) -> None:
    """Writes a new folder in the published layout. Raises a `FlashVLError`."""
    width = options.compressor_width
    if width is not None and not 1 <= width <= MAX_INTEGER:
        raise ArgumentError(f"the compressor's width must be at least 1, found {width}")
    out = read_path(options.out, "out")
    tower, decoder = find_model(options.tower), find_model(options.decoder)
    torch.manual_seed(options.seed)
    dtype = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    model, tokenizer, left_out = assemble(tower, decoder, options.kind, width, dtype)
    # A decoder that was never taught to chat does not name the end of a turn.
    stop_ids = read_stop_ids(decoder, tokenizer) | {tokenizer.control_id(TURN_END)}
    save_checkpoint(model, out, tokenizer=tokenizer, stop_ids=stop_ids)
    if left_out:
        print(f"{len(left_out)} tensors of the tower have no place, such as {left_out[0]}")
    print(f"assembled, with a new compressor; try: flashvl verify {options.out}")
