"""Solutions to the exercises of 06_reading_the_picture.ipynb.

Run from the folder of the notebooks: python solutions/06_reading_the_picture.py
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flashvl import FlashVL
from flashvl.model.network import image_places
from flashvl.nano.world.scenes import Scene, scene, scoring_number
from flashvl.nano.world.things import Box, Object
from flashvl.tools.look import look, read_and_watch, spelled

torch.set_grad_enabled(False)
flash = FlashVL.from_pretrained("nano", "cpu")
decoder, config = flash.model.decoder, flash.config.decoder
SIDE = round(flash.config.tokens_per_tile**0.5)  # image tokens along each side of a tile


def pairs(pixels: int, count: int) -> list[Scene]:
    """Square scenes of two objects that differ in shape and in color."""
    found: list[Scene] = []
    for index in range(1000):
        drawn = scene(
            scoring_number(18, index), (pixels, pixels), (2, 2), digits=0, max_aspect_ratio=1.0
        )
        one, other = drawn.objects
        if one.shape != other.shape and one.color != other.color and len(found) < count:
            found.append(drawn)
    return found


def squares(box: Box, size: int, rows: int, columns: int) -> np.ndarray:
    """(rows, columns): true where a square of a picture meets a box in it."""
    left, top, right, bottom = (edge / size for edge in box)
    meets = np.zeros((rows, columns), bool)
    meets[
        int(top * rows) : int(np.ceil(bottom * rows)),
        int(left * columns) : int(np.ceil(right * columns)),
    ] = True
    return meets


def question_about(thing: Object) -> str:
    return f"What color is the {thing.shape}?"


def answer(picture: Image.Image, question: str) -> str:
    return flash.chat(picture, [{"role": "user", "content": question}], max_new_tokens=16)


def heads_on(drawn: Scene, asked: Object) -> Tensor:
    """(layers, H): attention of the prompt's last token on what is asked about, in one tile."""
    prompt = flash.prepare(drawn.picture, [{"role": "user", "content": question_about(asked)}])
    _, attention = read_and_watch(flash.model, prompt, prompt.input_ids.shape[1] - 1)
    on_tokens = attention[:, :, 0, image_places(prompt.input_ids)[0]]  # (layers, H, tokens)
    meets = squares(asked.box, drawn.picture.width, SIDE, SIDE)
    return on_tokens[..., torch.tensor(meets.flatten())].sum(-1)  # (layers, H)


def exercise_1() -> None:
    """Lay the head's attention on the picture and sum it up over the object's squares.

    The head looks at the object wherever it finds it. How it splits its attention between the
    tiles, which show the object large, and the thumbnail is its own affair; print it and see.
    """
    small = [(one, asked) for one in pairs(112, 20) for asked in one.objects]
    mean = torch.stack([heads_on(*case) for case in small]).mean(0)  # (layers, H)
    layer, head = divmod(int(mean.argmax()), config.heads)
    in_tiles, in_thumbnail = [], []
    for drawn in pairs(300, 20):
        for asked in drawn.objects:
            first = look(flash, drawn.picture, question_about(asked), 1, layer, head)[0].mean
            assert first.thumbnail is not None  # there are several tiles
            tiles = squares(asked.box, drawn.picture.width, *first.tiles.shape)
            small_squares = squares(asked.box, drawn.picture.width, *first.thumbnail.shape)
            in_tiles.append(first.tiles[tiles].sum())
            in_thumbnail.append(first.thumbnail[small_squares].sum())
    print(f"head {layer}.{head} on the object: in the tiles {np.mean(in_tiles):.0%}, "
          f"in the thumbnail {np.mean(in_thumbnail):.0%}")  # fmt: skip
    assert np.mean(in_tiles) + np.mean(in_thumbnail) > 0.5


@contextmanager
def without_head(layer: int, head: int) -> Iterator[None]:
    def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0].clone()  # (B, T, H * head width)
        x[..., head * config.head_width : (head + 1) * config.head_width] = 0
        return (x,)

    handle = decoder.layers[layer].attention.output.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def exercise_2() -> None:
    """A head that costs many answers and does not look at the picture must be carrying words.

    If, asked from the last token, it looks at the name of the shape, it may bring that name to
    where the answer is chosen, for later heads to search by. What would refute this: that with the
    name's value vector in that head exchanged for another shape's the answer stays the same.
    """
    cases = [(one, asked) for one in pairs(112, 15) for asked in one.objects]

    def right() -> float:
        said = [answer(one.picture, question_about(asked)) == asked.color for one, asked in cases]
        return sum(said) / len(said)

    plain, shares = right(), {}
    for layer, head in np.ndindex(config.layers, config.heads):
        with without_head(layer, head):
            shares[layer, head] = right()
    layer, head = min(shares, key=shares.__getitem__)
    print(f"right: {plain:.0%}, without head {layer}.{head}: {shares[layer, head]:.0%}")
    looked_at: Counter[str] = Counter()
    for one, asked in cases:
        prompt = flash.prepare(one.picture, [{"role": "user", "content": question_about(asked)}])
        _, attention = read_and_watch(flash.model, prompt, prompt.input_ids.shape[1] - 1)
        most = int(attention[layer, head, 0].argmax())
        token = int(prompt.input_ids[0, most])
        looked_at["the picture" if token < 0 else spelled(token, flash.tokenizer)] += 1
    print(f"it looks most at: {looked_at.most_common(8)}")
    assert shares[layer, head] < plain


@contextmanager
def changed(change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, `change` has the last word on image tokens (S, tokens, D)."""
    handle = flash.model.compressor.register_forward_hook(lambda _, __, tokens: change(tokens))
    try:
        yield
    finally:
        handle.remove()


def exercise_3() -> None:
    """It sees it in most cases: what tells an object lies in the tokens that meet it.

    The tokens around it belong to another picture and do not get in the way.
    """
    scenes = pairs(112, 30)
    right = seen_before = tried = 0
    for giver, taker in pairwise(scenes):
        thing = giver.objects[0]
        if thing.shape in [one.shape for one in taker.objects]:
            continue
        prompt = flash.prepare(giver.picture, [{"role": "user", "content": ""}])
        assert prompt.pixels is not None
        graft = flash.model.compressor(flash.model.vision(prompt.pixels), prompt.grids)
        chosen = torch.tensor(squares(thing.box, giver.picture.width, SIDE, SIDE).flatten())
        tried += 1
        seen_before += answer(taker.picture, question_about(thing)) == thing.color
        # In Python a function in a loop keeps the loop's names, not their values; these it keeps.
        with changed(lambda x, graft=graft, at=chosen: torch.where(at[:, None], graft, x)):
            right += answer(taker.picture, question_about(thing)) == thing.color
    print(f"of {tried} transplanted objects {right} are seen, without them {seen_before}")
    assert right > tried / 2
    assert seen_before < right


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
