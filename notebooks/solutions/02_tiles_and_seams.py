"""Solutions to the exercises of 02_tiles_and_seams.ipynb.

Run from the folder of the notebooks: python solutions/02_tiles_and_seams.py
"""

import numpy as np
import torch
from PIL import Image

from flashvl import FlashVL, FlashVLConfig
from flashvl.checkpoint.hub import published_models
from flashvl.input.tiling import tile_image
from flashvl.model.compressor import average_margins, trim_margins
from flashvl.nano.score import right_answers
from flashvl.nano.world.backgrounds import draw_background
from flashvl.nano.world.scenes import ask_everything
from flashvl.nano.world.things import COLORS, SHAPES, draw_object, pick


def exercise_1() -> None:
    """Of n patches a side n - 2 m stay on each axis: (n / (n - 2 m))² patches of work for each.

    That passes 2 where n / (n - 2 m) passes the root of 2: for n = 32 between m = 4, the
    published margin (1.78), and m = 5 (2.12).
    """
    published = published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"]
    work = {}
    for margin in range(8):
        tokens = (32 - 2 * margin) ** 2
        config = FlashVLConfig.from_dict(published | {"image_token_num": tokens})
        assert config.stitched_margin == margin
        work[margin] = config.vision.patches / config.tokens_per_tile
        print(f"margin of {margin} patches: {work[margin]:.2f} patches of work for each that stays")
    assert next(margin for margin, each in work.items() if each > 2) == 5


def exercise_2() -> None:
    """Where no two tiles see the same place: in a grid of one tile, or with a margin of 0."""
    some = torch.randn(1, 8, 8, 5, generator=torch.Generator().manual_seed(0))  # (S, side, side, D)
    assert torch.equal(average_margins(some, (1, 1), 1), trim_margins(some, 1))
    four = torch.randn(4, 8, 8, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(average_margins(four, (2, 2), 0), trim_margins(four, 0))
    assert not torch.equal(average_margins(four, (2, 2), 1), trim_margins(four, 1))


def share_right(flash: FlashVL, number: int, place: int) -> float:
    """Of questions about object `number`, whose 4 x 4 patches begin at (place, place)."""
    tiler, patch = flash.config.tiler, flash.config.vision.patch_size
    random = np.random.default_rng(number)
    shape, color = pick(SHAPES, random), pick(tuple(COLORS), random)
    drawn = draw_object(shape, color, 4 * patch, random)
    cores = 2 * trimmed.config.tiler.core_size
    picture = Image.new("RGB", (cores, cores), draw_background([drawn.rgb], random))
    left = place * patch + (4 * patch - drawn.mask.width) // 2
    top = place * patch + (4 * patch - drawn.mask.height) // 2
    picture.paste(drawn.rgb, (left, top), drawn.mask)
    kinds = ("color", "shape", "count", "description", "list")
    asked = ask_everything([drawn], np.random.default_rng(number))
    questions = tuple(q for q in asked if q.language == "en" and q.kind in kinds)
    return float(np.mean(right_answers(flash, *tile_image(picture, tiler), questions)))


trimmed, alone = (
    FlashVL.from_pretrained("nano", assumptions={"stitching": mode, "thumbnail": False})
    for mode in ("trim", "none")
)


def exercise_3() -> None:
    """Place 2 is the last at which the object lies wholly inside the first core, 4 the corner.

    At place 3 the first tile's core holds 3 x 3 of the 4 x 4 patches: an object that has lost a
    corner can often be named still. At place 4 no tile has more than a quarter, and the answers
    of `none` break, while `trim` sees a ring of one more patch around each core.
    """
    right = {
        (mode, place): np.mean([share_right(flash, number, place) for number in range(30)])
        for mode, flash in (("trim", trimmed), ("none", alone))
        for place in (2, 3, 4)
    }
    for mode in ("trim", "none"):
        shares = ", ".join(f"place {place} {right[mode, place]:.2f}" for place in (2, 3, 4))
        print(f"{mode}: {shares}")
    assert right["none", 4] < right["none", 2] - 0.2
    assert right["none", 4] < right["trim", 4] - 0.2


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
