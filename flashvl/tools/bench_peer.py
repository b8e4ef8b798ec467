"""The same weights in transformers' own modules, timed turn about with ours in one process.

As its users run them: eager, with its default attention (sdpa) and cache (`DynamicCache`), prefill
with the logits of the last position alone, decode as its `generate` does greedily; in float32, and
in bfloat16 as stored, which its `dtype="auto"` gives. One module at a time is in memory beside
ours. transformers has no counterpart to the preprocessing and the compressor.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device import DTYPES
from .bench_ceilings import MEASURED
from .bench_device import multiplies_bfloat16
from .bench_stages import Stages
from .bench_timing import compare
from .transformers_modules import Published, build_decoder, build_tower, import_transformers


class PeerDecoder:
    """transformers' decoder with a prompt; each method runs a stage once."""

    def __init__(self, decoder: nn.Module, embeddings: Tensor, new: int) -> None:
        """embeddings (1, T, D) of any dtype; `new` tokens to decode after them."""
        self.decoder, self.new = decoder, new
        self.embeddings = embeddings.to(decoder.dtype)  # (1, T, D)
        self.first = torch.zeros(1, 1, dtype=torch.long, device=embeddings.device)  # (1, 1)
        self.cache: Any = None

    @torch.inference_mode()
    def prefill(self) -> None:
        self.cache = import_transformers().DynamicCache(config=self.decoder.config)
        self._read(inputs_embeds=self.embeddings)

    @torch.inference_mode()
    def decode(self) -> None:
        """All new tokens, each looked at; then the cache holds the prompt alone again."""
        token = self.first
        for _ in range(self.new):
            token = self._read(input_ids=token).argmax(dim=-1, keepdim=True)  # (1, 1)
            token.item()
        self.cache.crop(-self.new)

    def _read(self, **inputs: Tensor) -> Tensor:
        """-> the last position's logits (1, V)."""
        output = self.decoder(
            **inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1]


def compare_with_peer(stages: Stages, folder: Path, runs: int) -> dict[str, Any]:
    """Stage -> dtype of transformers' side -> both sides' times and their ratio.

    None stands in place of the tower in bfloat16 where the processor does not multiply it: one
    tile would take over 20 minutes.
    """
    result: dict[str, Any] = {"vision": {}, "prefill": {}, "decode": {}}
    for dtype in MEASURED:
        hopeless = dtype == "bfloat16" and not multiplies_bfloat16(stages.model.device)
        result["vision"][dtype] = None if hopeless else compare_towers(stages, folder, dtype, runs)
    for dtype in MEASURED:
        prefill, decode = compare_decoders(stages, folder, dtype, runs)
        result["prefill"][dtype], result["decode"][dtype] = prefill, decode
    return result


def compare_towers(stages: Stages, folder: Path, dtype: str, runs: int) -> dict[str, Any]:
    model, side = stages.model, stages.pixels.shape[-1]
    tower = build_tower(Published(folder, DTYPES[dtype]), model.config.vision, side)
    theirs = partial(run_tower, tower.to(model.device), stages.pixels.to(tower.dtype))
    sides = {"flashvl": stages.vision, f"transformers {dtype}": theirs}
    return compare("vision", sides, runs, model.device)


def compare_decoders(
    stages: Stages, folder: Path, dtype: str, runs: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> prefill's comparison, and decode's of one token."""
    device, name = stages.model.device, f"transformers {dtype}"
    decoder = build_decoder(Published(folder, DTYPES[dtype])).to(device)
    peer = PeerDecoder(decoder, stages.embeddings, stages.sizes.new)
    prefill = {"flashvl": stages.prefill, name: peer.prefill}
    decode = {"flashvl": stages.decode, name: peer.decode}
    return (
        compare("prefill", prefill, runs, device),
        compare("decode", decode, runs, device, steps=stages.sizes.new),
    )


@torch.inference_mode()
def run_tower(tower: nn.Module, pixels: Tensor) -> Tensor:
    """(S, C, height, width) -> features (S, N, vision width)."""
    return tower(pixels).last_hidden_state
