"""Solutions to the exercises of 01_pixels_to_tokens.ipynb.

Run from the folder of the notebooks: python solutions/01_pixels_to_tokens.py
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvl import FlashVL, FlashVLConfig
from flashvl.checkpoint.hub import published_models
from flashvl.input.processor import normalize
from flashvl.model.aimv2 import AIMv2Encoder
from flashvl.model.patches import cut_patches
from flashvl.nano.world.scenes import scene, scoring_number

torch.set_grad_enabled(False)


def exercise_1() -> None:
    """Interpolated positions work, though nobody trained the tower at this size.

    The features stay close to those of the small tile; with the same positions shuffled they do
    not, so it is the order that counts.
    """
    flash = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
    tower, tiler, side = flash.model.vision, flash.config.tiler, flash.config.vision.side
    world = {"sides": (112, 112), "things": (1, 1), "digits": 0, "max_aspect_ratio": 1.0}
    drawn = [scene(scoring_number(5, number), **world).picture for number in range(20)]
    pixels = normalize(np.stack(drawn), tiler.mean, tiler.std)  # (S, C, height, width)
    small = tower(pixels)  # (S, N, D)

    square = tower.positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    larger = F.interpolate(square, scale_factor=2, mode="bicubic")  # (1, D, 2 rows, 2 columns)
    larger = larger.flatten(2).transpose(1, 2)  # (1, 4 * N, D)
    order = torch.randperm(larger.shape[1], generator=torch.Generator().manual_seed(0))

    twice = dataclasses.replace(flash.config.vision, image_size=2 * flash.config.vision.image_size)
    alike = {}
    for name, positions in {"interpolated": larger, "shuffled": larger[:, order]}.items():
        enlarged = AIMv2Encoder(twice)
        enlarged.load_state_dict({**tower.state_dict(), "positions": positions})
        features = enlarged(F.interpolate(pixels, scale_factor=2, mode="bicubic"))  # (S, 4 * N, D)
        features = features.transpose(1, 2).unflatten(2, (2 * side, 2 * side))  # (S, D, rows, ...)
        means = F.avg_pool2d(features, 2).flatten(2).transpose(1, 2)  # (S, N, D)
        alike[name] = F.cosine_similarity(means, small, dim=-1).mean().item()
        print(f"positions {name}: similarity {alike[name]:.2f}")
    assert alike["interpolated"] > alike["shuffled"] + 0.05


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
