"""Solutions to the exercises of 03_compressor.ipynb.

Run from the folder of the notebooks: python solutions/03_compressor.py
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flashvl import FlashVLConfig, FlashVLModel
from flashvl.checkpoint.hub import published_models
from flashvl.model.compressor import pixel_shuffle
from flashvl.tools.trace.trace import trace_shapes


def unshuffle(x: Tensor) -> Tensor:
    """(S, rows, columns, 4 * D) -> (S, 2 * rows, 2 * columns, D)."""
    whole = x.new_empty(len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3] // 4)
    for place, block in enumerate(x.chunk(4, dim=-1)):  # 4 x (S, rows, columns, D)
        whole[:, place // 2 :: 2, place % 2 :: 2] = block
    return whole


def exercise_1() -> None:
    """Cut the channels into the four places and write each back into its own rows and columns."""
    tile = torch.randn(1, 32, 32, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unshuffle(pixel_shuffle(tile, 2)), tile)


def exercise_2() -> None:
    """Four identity matrices side by side, times a quarter.

    They add the four blocks channel by channel and divide by 4. So average pooling is one of
    the many things that `expand` could learn.
    """
    small = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.eye(8).repeat(1, 4) / 4  # (D, 4 * D)
    mean = pixel_shuffle(small, 2) @ weight.T  # (1, 3, 3, D)
    pooled = F.avg_pool2d(small.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)  # (1, 3, 3, D)
    torch.testing.assert_close(mean, pooled)


def exercise_3() -> None:
    """A quarter of the tokens, 64 a tile, each of 16 x 1536 = 24,576 numbers.

    `expand` grows to more than 176 million parameters, and the hidden width is then far smaller
    than the input: what the first layer drops is gone. Yet the page gets cheaper, for the prefill
    falls by more than the compressor's own work rises.
    """
    config = published_models()["FlashVL/FlashVL-2B-Dynamic"]["config"]
    page, text_tokens = Image.new("RGB", (1654, 2339)), 32
    costs, models = {}, {}
    for tokens in (config["image_token_num"], 64):
        with torch.device("meta"):
            changed = FlashVLConfig.from_dict(config | {"image_token_num": tokens})
            models[tokens] = FlashVLModel(changed).eval()
        run = trace_shapes(models[tokens], page, text_tokens, max_new_tokens=1)
        stages = {row["name"]: row["operations"] / 1e12 for row in run["rows"]}
        costs[tokens] = stages["compressor"] + stages["prefill"]
        print(f"{tokens} a tile: {run['image_tokens']:,} image tokens, {costs[tokens]:.2f} T")
    parameters = sum(p.numel() for p in models[64].compressor.parameters())
    print(f"{parameters:,} parameters in the compressor")
    assert models[64].config.tokens_per_tile == 64
    assert parameters == 2 * 24576 + (24576 + 1) * 7168 + (7168 + 1) * (7168 + 1536)
    assert costs[64] < costs[256]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
