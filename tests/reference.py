"""What a checkpoint must compute, written a second time and as plainly as possible.

Towers and decoder are transformers' own modules, pictures go through its image processors and
text through its tokenizer and a jinja template. Tiling, stitching and pixel shuffle, which no
library has, are loops here. Nothing of flashvl is imported.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

MAX_TILES = {"dynamic-iss": 6, "dynamic": 12, "static": 1}
TEMPLATE = jinja2.Template(
    "{% set seen = namespace(image=not has_image) %}"
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'user' and not seen.image %}<image>\n"
    "{% set seen.image = true %}{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    keep_trailing_newline=True,
)


@dataclass
class Reference:
    """One checkpoint as transformers' modules. `spec` is that of `checkpoints.make_checkpoint`."""

    spec: Any
    tower: nn.Module
    compressor: nn.Sequential
    decoder: Qwen2ForCausalLM
    tokenizer: Qwen2Tokenizer
    stop_ids: list[int]

    @property
    def stitching(self) -> str:
        return self.spec.assumptions.get("stitching", "trim")

    @property
    def core(self) -> int:
        """Patches along the side of a tile's core."""
        return self.spec.side - 2 * self.spec.margin

    def grid(self, image: Image.Image) -> tuple[int, int]:
        max_tiles = self.spec.assumptions.get("max_tiles", MAX_TILES[self.spec.kind])
        return closest_grid(image.width, image.height, self.core * self.spec.patch, max_tiles)

    def pixels(self, image: Image.Image) -> Tensor:
        """(tiles, 3, height, width): the grid's tiles row by row, then the thumbnail if several."""
        grid = self.grid(image)
        tiles = self._cut(image, *grid)
        if grid != (1, 1) and self.spec.assumptions.get("thumbnail", True):
            tiles += self._cut(image, 1, 1)
        return torch.stack(tiles)

    def _cut(self, image: Image.Image, rows: int, columns: int) -> list[Tensor]:
        """The processor resizes and normalizes the whole canvas; then windows are cut from it."""
        core = self.core * self.spec.patch
        margin = 0 if self.stitching == "none" else self.spec.margin * self.spec.patch
        size = {"height": rows * core, "width": columns * core}
        if self.spec.kind == "static":
            processor = SiglipImageProcessorPil(size=size, resample=Image.Resampling.BILINEAR)
        else:
            processor = CLIPImageProcessorPil(size=size, do_center_crop=False)
        canvas = processor(image, return_tensors="pt")["pixel_values"]
        canvas = F.pad(canvas, (margin,) * 4, mode="replicate")[0] if margin else canvas[0]
        window = core + 2 * margin
        return [
            canvas[:, top : top + window, left : left + window]
            for top in range(0, rows * core, core)
            for left in range(0, columns * core, core)
        ]

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        return self.tower_for(pixels)(pixels).last_hidden_state

    def tower_for(self, pixels: Tensor) -> nn.Module:
        """The tower, or for smaller tiles a copy of it that has the middle positions alone."""
        side, wanted = self.spec.side, pixels.shape[-1] // self.spec.patch
        if wanted == side:
            return self.tower
        start = (side - wanted) // 2
        tower = copy.deepcopy(self.tower)
        table = tower.embeddings.position_embedding.weight.data
        rows = [
            r * side + c for r in range(start, start + wanted) for c in range(start, start + wanted)
        ]
        tower.embeddings.position_embedding = nn.Embedding.from_pretrained(table[rows])
        tower.embeddings.position_ids = torch.arange(wanted**2)[None]
        return tower

    def reduce(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Stitching or pixel shuffle: what the compressor's first layer is given."""
        if self.spec.kind == "dynamic-iss":
            return stitch(features, grid, self.spec.side, self.spec.margin, self.stitching)
        return shuffle_pixels(features, self.spec.side)

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.compressor(self.reduce(self.features(pixels), grid))

    def input_ids(self, messages: list[dict[str, str]], tiles: int = 0) -> Tensor:
        """The rendered template in tokens, each `<image>` as -200 and then -201."""
        text = TEMPLATE.render(messages=messages, has_image=tiles > 0)
        pieces = text.split("<image>") if tiles else [text]
        ids = self.tokenizer(pieces[0]).input_ids
        for piece in pieces[1:]:
            ids += ([-200] + [-201] * (self.spec.tokens_per_tile - 1)) * tiles
            ids += self.tokenizer(piece).input_ids
        return torch.tensor([ids])

    @torch.no_grad()
    def embed(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """(1, T) -> (1, T, D), place by place."""
        waiting = [] if image_tokens is None else list(image_tokens.flatten(0, 1))
        table = self.decoder.get_input_embeddings().weight
        rows = [waiting.pop(0) if i in (-200, -201) else table[i] for i in input_ids[0].tolist()]
        assert not waiting
        return torch.stack(rows)[None]

    def prompt(self, image: Image.Image | None, messages: list[dict[str, str]]) -> Tensor:
        """A picture and a conversation -> the decoder's input (1, T, D)."""
        if image is None:
            return self.embed(self.input_ids(messages))
        pixels = self.pixels(image)
        tokens = self.image_tokens(pixels, self.grid(image))
        return self.embed(self.input_ids(messages, len(pixels)), tokens)

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        return self.decoder(inputs_embeds=embeddings, use_cache=False).logits

    @torch.no_grad()
    def generate(self, embeddings: Tensor, count: int, stop: bool = True, **how: Any) -> list[int]:
        """transformers' own generation: greedy unless `how` says otherwise; stop ids left out."""
        answer = self.decoder.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=count,
            eos_token_id=self.stop_ids if stop else None,
            pad_token_id=0,
            **({"do_sample": False} | how),
        )[0].tolist()
        return answer[:-1] if stop and answer and answer[-1] in self.stop_ids else answer

    def answer(
        self, image: Image.Image | None, messages: list[dict[str, str]], count: int, **how: Any
    ) -> str:
        """The text that `chat` must give."""
        ids = self.generate(self.prompt(image, messages), count, **how)
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def closest_grid(width: int, height: int, cell: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) nearest in aspect ratio, in exact fractions; a tie goes to the larger grid
    for which the picture has more than half of the pixels, else to the smallest."""
    counts = range(1, max_tiles + 1)
    grids = [(r, c) for r in counts for c in counts if r * c <= max_tiles]
    distance = {g: abs(Fraction(g[1], g[0]) - Fraction(width, height)) for g in grids}
    nearest = [g for g in grids if distance[g] == min(distance.values())]
    nearest.sort(key=lambda g: (g[0] * g[1], g))
    filled = [g for g in nearest if 2 * width * height > g[0] * g[1] * cell**2]
    return filled[-1] if filled else nearest[0]


def shuffle_pixels(features: Tensor, side: int) -> Tensor:
    """Each token is four neighbouring patches: upper left, upper right, lower left, lower right."""
    tokens = []
    for row in range(0, side, 2):
        for column in range(0, side, 2):
            corner = row * side + column
            patches = (corner, corner + 1, corner + side, corner + side + 1)
            tokens.append(torch.cat([features[:, patch] for patch in patches], dim=-1))
    return torch.stack(tokens, dim=1)


def stitch(features: Tensor, grid: tuple[int, int], side: int, margin: int, mode: str) -> Tensor:
    """The core tokens of each tile; in mode `mean` averaged over all tiles that saw the place."""
    if mode == "none":  # the tower saw the cores alone
        return features
    core, (rows, columns) = side - 2 * margin, grid
    seen: dict[tuple[int, int], list[Tensor]] = {}  # place in the whole picture -> features
    for tile in range(rows * columns):
        for r in range(side):
            for c in range(side):
                place = (tile // columns * core + r - margin, tile % columns * core + c - margin)
                seen.setdefault(place, []).append(features[tile, r * side + c])
    stitched = []
    for tile in range(len(features)):
        tokens = []
        for r in range(core):
            for c in range(core):
                if mode == "mean" and tile < rows * columns:
                    place = (tile // columns * core + r, tile % columns * core + c)
                    tokens.append(torch.stack(seen[place]).mean(dim=0))
                else:
                    tokens.append(features[tile, (r + margin) * side + c + margin])
        stitched.append(torch.stack(tokens))
    return torch.stack(stitched)
