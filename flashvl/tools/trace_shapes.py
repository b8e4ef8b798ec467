"""`flashvl trace --dry`: a model and its input as shapes alone, on torch's meta device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import read_config, read_headers
from ..config import FlashVLConfig
from ..device import DTYPES
from ..errors import ArgumentError
from ..hub import find_model, is_repository, published_models
from ..image import load_image, normalise
from ..model import FlashVL
from ..tiling import tile_image

DRY_DTYPE = "bfloat16"  # of the published files


def model_of_shapes(name: str, dtype: str) -> FlashVL:
    """A model on the meta device; of a published one the config comes from published.json.

    Raises `CheckpointError` or `ArgumentError`; asks no hub.
    """
    if not is_repository(name):
        folder = find_model(name)
        config = read_config(folder, read_headers(folder))
    elif name in published_models():
        config = FlashVLConfig.from_dict(published_models()[name]["config"])
    else:
        raise ArgumentError(
            f"--dry does not know {name}; use nano, a folder, or one of "
            + ", ".join(published_models())
        )
    with torch.device("meta"):
        model = FlashVL(config)
    return model.to(DTYPES[DRY_DTYPE if dtype == "auto" else dtype]).eval()


def prepare_shapes(model: FlashVL, image: np.ndarray, text_tokens: int) -> tuple[Tensor, Tensor]:
    """`FlashVL.prepare` for the meta device, where ids have a count and no values.

    -> input_ids (1, T), pixels (S, C, height, width).
    """
    config = model.config
    tiles, _ = tile_image(load_image(image), config.tiler)  # (S, height, width, C)
    pixels = normalise(tiles, config.tiler.mean, config.tiler.std).to("meta")
    per_tile = config.tokens_per_tile + len(config.prompt.slice_markers or ())
    tokens = text_tokens + len(tiles) * per_tile
    return torch.empty(1, tokens, dtype=torch.long, device="meta"), pixels


def unsettled(config: FlashVLConfig) -> list[str]:
    """What the counts of a published model rest on that no published file settles."""
    tiler = config.tiler
    assumed, reported = ["the tower's last layer gives the features"], []
    if config.vision.architecture == "aimv2":
        reported += [f"tiles of {tiler.tile_size} pixels", "the tower's mathematics"]
        assumed += [
            f"at most {tiler.max_tiles} tiles in the grid of the closest aspect ratio",
            "a thumbnail after several tiles",
            "no markers around a tile",
        ]
    if tiler.margin:
        reported.append(f"{config.tokens_per_tile} tokens a tile")
        assumed.append(f"stitching {tiler.stitching}")
    lines = [("assumed", assumed), ("reported by a third party", reported)]
    return [f"{how}: {', '.join(facts)}" for how, facts in lines if facts]
