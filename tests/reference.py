"""What a checkpoint must compute, written a second time and as plainly as possible.

Towers and decoder are transformers' own modules, pictures go through its image processors and
text through its tokenizer and a jinja template. Tiling, stitching and pixel shuffle, which no
library has, are loops here. Nothing of flashvl is imported.
"""

from __future__ import annotations

import copy
import math
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
    "{% if messages[0].role != 'system' and system is string %}"
    "<|im_start|>system\n{{ system }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'user' and not seen.image %}<image>{{ after_image }}"
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
        rule = RULES[self.spec.assumptions.get("grid", "aspect")]
        return rule(image.width, image.height, self.core * self.spec.patch, max_tiles)

    @property
    def thumbnail(self) -> str:
        stated = self.spec.assumptions.get("thumbnail", "last")
        return {True: "last", False: "none"}.get(stated, stated)

    def places(self, grid: tuple[int, int]) -> list[tuple[int, int] | None]:
        """The row and column of each tile as the decoder reads them; None is the thumbnail."""
        rows, columns = grid
        if self.spec.assumptions.get("tile_order", "rows") == "rows":
            tiles = [(row, column) for row in range(rows) for column in range(columns)]
        else:
            tiles = [(row, column) for column in range(columns) for row in range(rows)]
        if grid == (1, 1) or self.thumbnail == "none":
            return tiles
        return [None, *tiles] if self.thumbnail == "first" else [*tiles, None]

    def pixels(self, image: Image.Image) -> Tensor:
        """(tiles, 3, height, width)."""
        grid = self.grid(image)
        tiles, small = self._cut(image, *grid), self._cut(image, 1, 1)[0]
        places = self.places(grid)
        ordered = [small if at is None else tiles[at[0] * grid[1] + at[1]] for at in places]
        return torch.stack(ordered)

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
        canvas = self._padded(canvas, margin)[0] if margin else canvas[0]
        window = core + 2 * margin
        return [
            canvas[:, top : top + window, left : left + window]
            for top in range(0, rows * core, core)
            for left in range(0, columns * core, core)
        ]

    def _padded(self, canvas: Tensor, margin: int) -> Tensor:
        """With a black frame, unless an assumption says otherwise; the canvas is normalized."""
        padding = self.spec.assumptions.get("padding", "constant")
        if padding != "constant":
            mode = {"edge": "replicate", "reflect": "reflect"}[padding]
            return F.pad(canvas, (margin,) * 4, mode=mode)
        processor = CLIPImageProcessorPil(size={"height": 1, "width": 1}, do_center_crop=False)
        black = processor(Image.new("RGB", (1, 1)), return_tensors="pt")["pixel_values"]
        frame = black.repeat(1, 1, canvas.shape[2] + 2 * margin, canvas.shape[3] + 2 * margin)
        frame[:, :, margin:-margin, margin:-margin] = canvas
        return frame

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        tower, layer = self.tower_for(pixels), self.spec.assumptions.get("feature_layer", -1)
        if layer < 0:
            return tower(pixels).last_hidden_state
        return tower(pixels, output_hidden_states=True).hidden_states[layer + 1]  # 0: embeddings

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
            places = self.places(grid)
            in_rows = sorted(filter(None, places)) + [None] * (None in places)
            ordered = features[[places.index(at) for at in in_rows]]
            stitched = stitch(ordered, grid, self.spec.side, self.spec.margin, self.stitching)
            tokens = stitched[[in_rows.index(at) for at in places]]
        else:
            tokens = shuffle_pixels(features, self.spec.side)
        side = math.isqrt(tokens.shape[1])
        if self.spec.assumptions.get("token_order", "rows") == "rows":
            return tokens
        return tokens[:, [row * side + column for column in range(side) for row in range(side)]]

    @torch.no_grad()
    def image_tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.compressor(self.reduce(self.features(pixels), grid))

    def input_ids(self, messages: list[dict[str, str]], tiles: int = 0) -> Tensor:
        """The rendered template in tokens, each `<image>` as -200 and then -201."""
        text = TEMPLATE.render(
            messages=messages,
            has_image=tiles > 0,
            system=self.spec.assumptions.get("system", "You are a helpful assistant."),
            after_image="\n" if self.spec.assumptions.get("image_place", "line") == "line" else "",
        )
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


def fullest_grid(width: int, height: int, cell: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) in which most of the picture's pixels are shown; then the smallest area."""
    best, best_key = (0, 0), (-1, 0)
    for count in range(1, max_tiles + 1):
        for rows in (rows for rows in range(1, count + 1) if count % rows == 0):
            columns = count // rows
            if columns * cell * height <= rows * cell * width:  # as wide as the grid
                scale = columns * cell / width
            else:
                scale = rows * cell / height
            shown = min(int(width * scale) * int(height * scale), width * height)
            if (shown, -count) > best_key:
                best, best_key = (rows, columns), (shown, -count)
    return best


def sliced_grid(width: int, height: int, cell: int, max_tiles: int) -> tuple[int, int]:
    """(rows, columns) by MiniCPM's rule."""
    full = -(-width * height // cell**2)
    if min(full, max_tiles) <= 1:
        return (1, 1)
    wanted, found = min(full, max_tiles), []
    for count in range(wanted - 1, wanted + 2):
        for columns in range(1, count + 1):
            rows, rest = divmod(count, columns)
            if 2 <= count <= max_tiles and rest == 0:
                error = abs(math.log(width / height) - math.log(columns / rows))
                found.append((error, len(found), (rows, columns)))
    return min(found)[2]


RULES = {"aspect": closest_grid, "resolution": fullest_grid, "slices": sliced_grid}


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
    """The core tokens of each tile; in mode `mean` averaged over all tiles that saw the place.

    In mode `pool` each is the mean of all patches that its part of the tile touches.
    """
    if mode == "none":  # the tower saw the cores alone
        return features
    if mode == "pool":
        return pool(features, side, side - 2 * margin)
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


def pool(features: Tensor, side: int, core: int) -> Tensor:
    """side * side patches to core * core tokens; lengths in parts of a patch and of a token."""

    def touches(patch: int, token: int) -> bool:
        return patch * core < (token + 1) * side and (patch + 1) * core > token * side

    tokens = []
    for row in range(core):
        for column in range(core):
            patches = [
                features[:, r * side + c]
                for r in range(side)
                for c in range(side)
                if touches(r, row) and touches(c, column)
            ]
            tokens.append(torch.stack(patches).mean(dim=0))
    return torch.stack(tokens, dim=1)
