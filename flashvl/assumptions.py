"""What nobody has published: every assumption about the models, in one table.

weights/ASSUMPTIONS.md is this table as a page, `flashvl verify` tells what is in use of it, and
`flashvl settle` asks a model about the alternatives. Data alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# Of the slice markers. Source: the published code of the dynamic models.
PLACEHOLDERS = ("[PLACEHOLDER_0]", "[PLACEHOLDER_1]")


@dataclass(frozen=True)
class Alternative:
    """A value of a field, as a config.json states it, and what it means in words."""

    value: Any
    meaning: str


@dataclass(frozen=True)
class Assumption:
    """A fact about a model that no published file states, or that only its own files state.

    `name` is the field that overrides it, of the config's `part`; without a part nothing does, and
    `place` says where it stands. `what` explains it and `label` is short. `sure` is "assumed",
    "reported" (by a third party that read the published code), or "" for what a file settles. Of
    the `alternatives`, which `flashvl settle` compares, the first is the default.
    """

    name: str
    label: str
    what: str
    default: str
    sure: str
    source: str
    settled_by: str
    part: str = ""
    place: str = ""
    alternatives: tuple[Alternative, ...] = ()


SETTLE = "`flashvl settle`"
VERIFY = "`flashvl verify`"

TABLE = (
    Assumption(
        "model_type",
        "model_type of Dynamic",
        "the model_type in the config.json of Dynamic",
        "`FlashVLDynamicConfig`",
        "assumed",
        "the sizes of the published files",
        "its config.json",
        place="`MODEL_KINDS` in `config.py`",
    ),
    Assumption(
        "tensor_prefix",
        "names of the tower begin with",
        "what the names of the AIMv2 tower's tensors begin with",
        "`vit.`",
        "assumed",
        "as the SigLIP tower's, which are published",
        f"{VERIFY}, by the names themselves",
        part="vision",
    ),
    Assumption(
        "patches",
        "patches a tile",
        "how many patches a tile has",
        "32 x 32",
        "",
        "read from the learned positions",
        VERIFY,
    ),
    Assumption(
        "tokens",
        "tokens a tile",
        "how many tokens a tile becomes, and by that the margin or the pixel shuffle",
        "576 with stitching, 256 with pixel shuffle",
        "reported",
        "read from `image_token_num` and `adp.p0.0`",
        VERIFY,
    ),
    Assumption(
        "stitching",
        "stitching",
        "ISS: how the 32 x 32 patches of a tile, whose margin lies over its neighbors, become "
        "24 x 24",
        "",
        "assumed",
        "tiles overlap by about 12.5 %, and the step has no weights",
        SETTLE,
        part="tiler",
        alternatives=(
            Alternative("trim", "the margin is thrown away"),
            Alternative("mean", "where tiles overlap, the mean of what each of them saw"),
            Alternative("none", "the tower sees the cores alone"),
            Alternative("pool", "all are averaged down, over windows that overlap"),
        ),
    ),
    Assumption(
        "padding",
        "padding of the canvas",
        "ISS: what the margin shows beyond the picture's edge",
        "",
        "reported",
        "a review of the paper",
        SETTLE,
        part="tiler",
        alternatives=(
            Alternative("constant", "black, 0 before normalization"),
            Alternative("edge", "the edge's pixels, again and again"),
            Alternative("reflect", "the picture mirrored at its last pixel"),
            Alternative("symmetric", "the picture mirrored behind its last pixel"),
        ),
    ),
    Assumption(
        "max_tiles",
        "most tiles",
        "how many tiles a picture is cut into at most, the thumbnail not counted",
        "12 Dynamic, 6 ISS",
        "assumed",
        "about as many tokens in both",
        SETTLE,
        part="tiler",
        alternatives=tuple(Alternative(count, "") for count in range(1, 13)),
    ),
    Assumption(
        "grid",
        "rule for the grid",
        "which rows and columns of tiles a picture gets",
        "",
        "assumed",
        "InternVL, LLaVA-NeXT and MiniCPM-V, in this order",
        SETTLE,
        part="tiler",
        alternatives=(
            Alternative("aspect", "the closest in aspect ratio"),
            Alternative("resolution", "shows most of its pixels, with least waste"),
            Alternative("slices", "as many tiles as it has pixels for"),
        ),
    ),
    Assumption(
        "thumbnail",
        "thumbnail beside the tiles",
        "where the whole picture, once more in one tile, stands if there are several tiles",
        "",
        "assumed",
        "InternVL",
        SETTLE,
        part="tiler",
        alternatives=(
            Alternative("last", "after the tiles"),
            Alternative("first", "before the tiles"),
            Alternative("none", "nowhere"),
        ),
    ),
    Assumption(
        "tile_order",
        "order of the tiles",
        "in which order the tiles of a grid are read",
        "",
        "assumed",
        "the usual one",
        SETTLE,
        part="tiler",
        alternatives=(
            Alternative("rows", "row by row"),
            Alternative("columns", "column by column"),
        ),
    ),
    Assumption(
        "preprocessing",
        "resize filter, mean, deviation",
        "how pictures are resized and normalized",
        "CLIP's, bicubic; Static bilinear with 0.5",
        "reported",
        "read from preprocessor_config.json",
        VERIFY,
    ),
    Assumption(
        "feature_layer",
        "layer of the features",
        "which layer of the tower gives a patch's features",
        "",
        "assumed",
        "the usual one of AIMv2",
        SETTLE,
        part="vision",
        alternatives=(
            Alternative(-1, "the last, after the norm"),
            Alternative(23, "the last of 24, without the norm"),
            Alternative(22, "the one before it, without the norm"),
        ),
    ),
    Assumption(
        "token_order",
        "order of the tokens",
        "in which order the tokens of a tile are read",
        "",
        "assumed",
        "the end of the published pixel shuffle was not seen",
        SETTLE,
        part="compressor",
        alternatives=(
            Alternative("rows", "row by row"),
            Alternative("columns", "column by column"),
        ),
    ),
    Assumption(
        "aimv2",
        "mathematics of AIMv2",
        "what the layers of the AIMv2 tower compute",
        "Apple's code",
        "reported",
        "arXiv 2411.14402",
        "`flashvl parity`",
        place="`model/aimv2.py`",
    ),
    Assumption(
        "system",
        "system turn",
        "what the model is told before the first question, if the user has no system turn",
        "",
        "reported",
        "LLaVA-NeXT's template for Qwen",
        SETTLE,
        part="prompt",
        alternatives=(
            Alternative("You are a helpful assistant.", ""),
            Alternative(QWEN_SYSTEM, "Qwen2.5's own"),
            Alternative(False, "no system turn"),
        ),
    ),
    Assumption(
        "image_place",
        "place of the picture",
        "where the picture stands in the first user turn",
        "",
        "reported",
        "LLaVA-NeXT's template for Qwen",
        SETTLE,
        part="prompt",
        alternatives=(
            Alternative("line", "before its text, and a line break between them"),
            Alternative("text", "before its text, with nothing between them"),
        ),
    ),
    Assumption(
        "slice_markers",
        "slice markers",
        f"where the tokens `{PLACEHOLDERS[0]}` and `{PLACEHOLDERS[1]}` stand",
        "",
        "assumed",
        "they are named in the published code, and the same constants stand unused in another "
        "model's",
        SETTLE,
        part="prompt",
        alternatives=(
            Alternative("none", "nowhere"),
            Alternative("tile", "around each tile"),
            Alternative("picture", "around all tiles of a picture"),
        ),
    ),
    Assumption(
        "head",
        "output head",
        "whether the output head is the embedding once more",
        "stored separately",
        "",
        "read from the tensors' names",
        VERIFY,
    ),
    Assumption(
        "stop_ids",
        "answers end at",
        "the tokens that end an answer",
        "151645, 151643",
        "",
        "read from generation_config.json",
        VERIFY,
    ),
    Assumption(
        "repetition_penalty",
        "repetition penalty counts",
        "which tokens a repetition penalty makes less likely",
        "the prompt's text and the answer",
        "assumed",
        "transformers",
        "published code",
        place="`generation/generate.py`",
    ),
)

# Those that a field overrides, by its name.
FIELDS = {one.name: one for one in TABLE if one.part}


def choices_of(name: str) -> tuple[str, ...]:
    """The values of a field that is chosen from a list."""
    return tuple(one.value for one in FIELDS[name].alternatives)


def alternatives_of(name: str, layers: int) -> tuple[Alternative, ...]:
    """What may stand in a field, for a model whose tower has so many layers."""
    if name != "feature_layer":
        return FIELDS[name].alternatives
    last = FIELDS[name].alternatives[0]
    numbers = (layers - 1, layers - 2)
    meanings = ("the last, without the norm", "the one before it, without the norm")
    found = (Alternative(*one) for one in zip(numbers, meanings) if one[0] >= 0)
    return (last, *found)


def in_words(name: str, value: object, layers: int) -> str:
    """A field's value, and what it means if it does not say so itself."""
    shown = " and ".join(value) if isinstance(value, tuple) else str(value)
    shown = shown.lower() if isinstance(value, bool) else shown  # as JSON writes it
    if name == "feature_layer" and value != -1:
        return f"{shown}: without the norm"
    for one in alternatives_of(name, layers):
        if one.meaning and one.value == value and type(one.value) is type(value):
            return f"{shown}: {one.meaning}"
    return shown
