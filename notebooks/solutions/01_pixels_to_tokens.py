"""Solutions to the exercises of 01_pixels_to_tokens.ipynb.

Run from the folder of the notebooks: python solutions/01_pixels_to_tokens.py
"""

import torch
from torch import Tensor

from flashvl import FlashVLConfig
from flashvl.checkpoint.hub import published_models
from flashvl.model.patches import cut_patches


def exercise_1() -> None:
    """512 / 16 = 32 patches a side, so again 1024; a patch has 16 x 16 pixels of 3 channels.

    1024 patches become 256 tokens, so 4 patches make one: the 2 x 2 pixel shuffle of notebook 3.
    """
    static = FlashVLConfig.from_dict(published_models()["FlashVL/FlashVL-2B-Static"]["config"])
    numbers = static.vision.channels * static.vision.patch_size**2
    print(static.vision.patches, "patches,", numbers, "numbers,", static.tokens_per_tile, "tokens")
    assert static.vision.patches == 1024
    assert numbers == 768
    assert static.vision.patches // static.tokens_per_tile == static.compressor.shuffle**2 == 4


def join_patches(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `cut_patches` for square tiles, by undoing its steps in reverse order.

    Split what was merged, put the axes back in their old order, merge rows and columns.
    (S, N, C * patch * patch) -> (S, C, height, width).
    """
    side = int(patches.shape[1] ** 0.5)
    x = patches.unflatten(2, (-1, patch, patch)).unflatten(1, (side, side))  # (S, r, c, C, p, p)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (S, C, rows, p, columns, p)
    return x.flatten(4, 5).flatten(2, 3)  # (S, C, height, width)


def exercise_2() -> None:
    """An inverse exists, so nothing is lost."""
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert torch.equal(join_patches(cut_patches(pixels, 14), 14), pixels)


def exercise_3() -> None:
    """N (4 D² + 3 D M) = 2 N² D gives N = 2 D + 1.5 M; the number of layers cancels out.

    With D = 1536 and M = 4096 that is 9216 patches, which happens to be a square: 96 x 96
    patches, a tile of 96 x 14 = 1344 pixels.
    """
    big = FlashVLConfig.from_dict(published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"])
    width, mlp_width = big.vision.width, big.vision.mlp_width
    n = 2 * width + 3 * mlp_width // 2
    side = int(n**0.5) * big.vision.patch_size
    print(n, "patches, a tile of", side, "pixels")
    assert (side // big.vision.patch_size) ** 2 == n
    assert n * (4 * width**2 + 3 * width * mlp_width) == 2 * n**2 * width


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
