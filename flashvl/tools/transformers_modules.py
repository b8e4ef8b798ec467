"""The independent reference: transformers' own modules with a checkpoint's weights.

Published names are turned into transformers' here, apart from `checkpoint/tensor_names.py`, so
that a mistake in either table shows as a difference. transformers is imported when a function is
called, never before, because flashvl itself does without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.files import open_safetensors, read_headers
from ..config import VisionConfig
from ..errors import CheckpointError, FlashVLError
from ..reading import read_json

# Keys of a published tower's config that transformers' classes know.
TOWER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "rms_norm_eps",
    "layer_norm_eps",
)
# transformers' AIMv2 names -> the published ones, replaced in this order.
AIMV2_NAMES = {
    "embeddings.patch_embed": "preprocessor.patchifier.proj",
    "embeddings.rms_norm": "preprocessor.patchifier.norm",
    "embeddings.position_embedding.weight": "preprocessor.pos_embed",
    "encoder.layers": "trunk.blocks",
    "rms_norm1": "norm_1",
    "rms_norm2": "norm_2",
    "rms_norm": "trunk.post_trunk_norm",
    "attention.out_proj": "attn.proj",
    "ffn.gate_proj": "mlp.fc1",
    "ffn.up_proj": "mlp.fc3",
    "ffn.down_proj": "mlp.fc2",
}
COMPRESSOR_PARTS = ("p0.0", "p0.1", "gelu", "p0.3", "gelu", "proj")


class Published:
    """A folder's config.json as it stands, and its tensors one at a time in `dtype`."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.config = read_json(folder / "config.json")
        self.headers = read_headers(folder)
        self.dtype = dtype

    def tensor(self, name: str) -> Tensor:
        """By its published name; mapped from the file, not copied, if stored in that dtype."""
        with open_safetensors(self.headers[name].file) as tensors:
            return tensors.get_tensor(name).to(self.dtype)


def build_tower(published: Published, vision: VisionConfig, tile_size: int) -> nn.Module:
    """transformers' tower for tiles of `tile_size` pixels, with the middle of the positions.

    It ends with the layer whose features are used.
    """
    transformers = import_transformers()
    section = published.config["vision_config"]
    section = section.get("vision_config", section)
    keys = {key: section[key] for key in TOWER_KEYS if key in section}
    keys |= {"image_size": tile_size, "patch_size": vision.patch_size}
    if vision.feature_layer >= 0:
        keys["num_hidden_layers"] = vision.feature_layer + 1

    def middle(positions: Tensor) -> Tensor:
        side = tile_size // vision.patch_size
        start = (vision.side - side) // 2
        square = positions.view(vision.side, vision.side, -1)  # (side, side, D)
        return square[start : start + side, start : start + side].flatten(0, 1)  # (N, D)

    def siglip(name: str) -> Tensor:
        tensor = published.tensor(vision.tensor_prefix + name)
        return middle(tensor) if "position_embedding" in name else tensor

    def aimv2(name: str) -> Tensor:
        for theirs, as_published in AIMV2_NAMES.items():
            name = name.replace(theirs, as_published)
        for part, letter in enumerate("qkv"):
            if f"attention.{letter}_proj" in name:
                name = name.replace(f"attention.{letter}_proj", "attn.qkv")
                qkv = published.tensor(vision.tensor_prefix + name)  # (3 * D, D)
                return qkv.chunk(3)[part].clone()  # (D, D)
        tensor = published.tensor(vision.tensor_prefix + name)
        return middle(tensor[0]) if "pos_embed" in name else tensor

    if vision.architecture == "siglip":
        config = transformers.SiglipVisionConfig(**keys, vision_use_head=False)
        return _build(transformers.SiglipVisionModel, config, siglip)
    config = transformers.Aimv2VisionConfig(**keys, use_head=False)
    return _build(transformers.Aimv2VisionModel, config, aimv2)


def build_compressor(published: Published) -> nn.Sequential:
    """The published MLP, which transformers does not have, as plain modules."""
    modules: list[nn.Module] = []
    for part in COMPRESSOR_PARTS:
        if part == "gelu":
            modules.append(nn.GELU())
            continue
        weight, bias = (published.tensor(f"adp.{part}.{kind}") for kind in ("weight", "bias"))
        module = nn.LayerNorm(len(weight)) if weight.ndim == 1 else nn.Linear(*weight.shape[::-1])
        module.weight.data, module.bias.data = weight, bias
        modules.append(module)
    return nn.Sequential(*modules)


def build_decoder(published: Published) -> nn.Module:
    """transformers' Qwen2, configured by the published config.json itself."""
    transformers = import_transformers()
    section = dict(published.config["llm_config"])
    for key in ("model_type", "torch_dtype", "dtype"):
        section.pop(key, None)
    section["tie_word_embeddings"] = "llm.lm_head.weight" not in published.headers
    config = transformers.Qwen2Config(**section)
    return _build(
        transformers.Qwen2ForCausalLM, config, lambda name: published.tensor(f"llm.{name}")
    )


def import_transformers() -> Any:
    """Raises `FlashVLError` if the library is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise FlashVLError(
            "this compares with the library transformers, which is not installed; "
            'run: pip install "flashvl[test]"'
        ) from error
    return transformers


def _build(kind: type, config: Any, tensor: Callable[[str], Tensor]) -> nn.Module:
    """A transformers module; `tensor` gives the weights by its own parameter names."""
    from transformers.initialization import no_init_weights

    with no_init_weights():  # random numbers for 1.8 B weights would take a minute
        module = kind(config).eval()
    module.tie_weights()
    for name, parameter in module.named_parameters():
        parameter.data = _fitting(name, tensor(name), parameter.shape)
    return module


def _fitting(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.shape != shape:
        raise CheckpointError(
            f"transformers wants {tuple(shape)} for {name}, the file has {tuple(tensor.shape)}; "
            "config.json does not describe these tensors"
        )
    return tensor
