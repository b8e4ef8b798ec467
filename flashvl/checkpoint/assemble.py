"""A Flash-VL from a tower and a decoder in their own published layouts, with a new compressor.

This is the state in which the paper's training begins. Towers: AIMv2 under Apple's names or those
of transformers, and SigLIP, alone or with its text model. Decoders: Qwen2 and Qwen2.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import MODEL_KINDS, FlashVLConfig
from ..errors import CheckpointError
from ..input.tokenizer import Tokenizer
from ..model.compressor import Compressor
from ..model.network import FlashVLModel
from ..reading import MAX_CONFIG_BYTES, read_json, shown
from .files import Headers, TensorHeader, open_safetensors, read_headers
from .load import assign, check_tensors, published_shapes
from .published import fit_to_tensors
from .tensor_names import our_name

KINDS = {
    "iss": "FlashVLDynamicISSConfig",
    "dynamic": "FlashVLDynamicConfig",
    "static": "FlashVLStaticConfig",
}
# The published compressors' hidden width over the decoder's: 7168 over 1536.
WIDENING = (14, 3)
POSITIONS = "preprocessor.pos_embed"
# transformers' names of AIMv2 -> Apple's; `#` is a layer's number.
AIMV2_OF_TRANSFORMERS = {
    "embeddings.patch_embed": "preprocessor.patchifier.proj",
    "embeddings.rms_norm": "preprocessor.patchifier.norm",
    "encoder.layers.#.rms_norm1": "trunk.blocks.#.norm_1",
    "encoder.layers.#.rms_norm2": "trunk.blocks.#.norm_2",
    "encoder.layers.#.attention.out_proj": "trunk.blocks.#.attn.proj",
    "encoder.layers.#.ffn.gate_proj": "trunk.blocks.#.mlp.fc1",
    "encoder.layers.#.ffn.down_proj": "trunk.blocks.#.mlp.fc2",
    "encoder.layers.#.ffn.up_proj": "trunk.blocks.#.mlp.fc3",
    "rms_norm": "trunk.post_trunk_norm",
}
QKV = re.compile(r"encoder\.layers\.(\d+)\.attention\.([qkv])_proj\.weight")
# Of a checkpoint that holds more than a tower; AIMv2's own head is no part of Flash-VL.
BESIDE = re.compile(r"text_model\..*|logit_.*|.*position_ids|(visual|text)_projection.*")
AIMV2_HEAD = re.compile(r"head\..*")


@dataclass(frozen=True)
class Part:
    """Where a tensor comes from: several are joined along their rows; `shape` is the result's."""

    sources: tuple[tuple[Path, str], ...]
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        pieces = []
        for file, name in self.sources:
            with open_safetensors(file) as opened:
                pieces.append(opened.get_tensor(name))
        return torch.cat(pieces).reshape(self.shape)


def assemble(
    tower: Path, decoder: Path, kind: str, compressor_width: int | None, dtype: torch.dtype
) -> tuple[FlashVLModel, Tokenizer, list[str]]:
    """-> the model on the CPU, the decoder's tokenizer, and names of the tower that were left out.

    The compressor's values are drawn by torch. Raises `CheckpointError` or `ConfigError` before a
    weight is read if the parts do not fit the kind or each other.
    """
    parts, left_out = tower_parts(read_headers(tower), MODEL_KINDS[KINDS[kind]].architecture)
    parts |= decoder_parts(read_headers(decoder), read_config_of(decoder))
    config = config_of(tower, decoder, kind, compressor_width, parts)
    tokenizer = Tokenizer.from_folder(decoder)
    if tokenizer.vocabulary > config.decoder.vocabulary:
        raise CheckpointError("the tokenizer has more tokens than the decoder embeds")
    with torch.device("meta"):
        model = FlashVLModel(config)
    new = {
        name: TensorHeader(tower, "F32", tuple(shape))
        for name, shape in published_shapes(model).items()
        if name.startswith("adp.")
    }
    check_tensors(model, as_headers(parts) | new)
    model.compressor = Compressor(config)
    for name, part in parts.items():
        ours = our_name(name, config.vision.architecture, config.vision.tensor_prefix)
        assign(model, ours, part.read().to(dtype))
    model.compressor.to(dtype)
    if config.decoder.tied_head:
        model.decoder.head.weight = model.decoder.embedding.weight
    return model, tokenizer, left_out


def read_config_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)


def config_of(
    tower: Path, decoder: Path, kind: str, compressor_width: int | None, parts: dict[str, Part]
) -> FlashVLConfig:
    """Raises `ConfigError` for what this code does not build."""
    vision, text = read_config_of(tower), read_config_of(decoder)
    if isinstance(vision.get("vision_config"), dict):
        vision = vision["vision_config"]
    if text.get("model_type") != "qwen2":
        raise CheckpointError(
            f"the decoder must be a Qwen2 or Qwen2.5, {decoder} is {shown(text.get('model_type'))}"
        )
    wanted, found = MODEL_KINDS[KINDS[kind]].architecture, vision.get("model_type", "")
    if not str(found).startswith(wanted):
        raise CheckpointError(f"the tower of {kind} must be of {wanted}, found {shown(found)}")
    for key, plain in (("is_native", False), ("mlp_bias", False)):
        if vision.get(key, plain) is not plain:
            raise CheckpointError(f'the tower has "{key}", which this code does not build')
    published = {
        "model_type": KINDS[kind],
        "vision_config": vision,
        "llm_config": text,
        "intermediate_size": compressor_width or 1,
    }
    config = FlashVLConfig.from_dict(fit_to_tensors(published, as_headers(parts)))
    hidden = compressor_width or config.decoder.width * WIDENING[0] // WIDENING[1]
    compressor = replace(config.compressor, hidden_width=hidden)
    return replace(config, compressor=compressor)


def as_headers(parts: dict[str, Part]) -> Headers:
    return {
        name: TensorHeader(part.sources[0][0], part.dtype, part.shape)
        for name, part in parts.items()
    }


def tower_parts(headers: Headers, architecture: str) -> tuple[dict[str, Part], list[str]]:
    """A tower's tensors by published name, and the names that are left out."""
    parts: dict[str, Part] = {}
    left_out = []
    joined: dict[str, dict[str, str]] = {}
    for stored, header in headers.items():
        name = re.sub(r"^(vision_model|vision_encoder|model)\.", "", stored)
        source = ((header.file, stored),)
        if BESIDE.fullmatch(stored) or (architecture == "aimv2" and AIMV2_HEAD.fullmatch(name)):
            left_out.append(stored)
        elif architecture == "aimv2" and (found := QKV.fullmatch(name)):
            joined.setdefault(f"trunk.blocks.{found[1]}.attn.qkv.weight", {})[found[2]] = stored
        elif architecture == "aimv2" and name == "embeddings.position_embedding.weight":
            parts[f"vit.{POSITIONS}"] = Part(source, header.dtype, (1, *header.shape))
        else:
            ours = _apples_name(name) if architecture == "aimv2" else name
            parts[f"vit.{ours}"] = Part(source, header.dtype, header.shape)
    for name, stored_as in joined.items():
        if stored_as.keys() != set("qkv"):
            raise CheckpointError(f"{name} of the tower lacks {min(set('qkv') - stored_as.keys())}")
        three = [headers[stored_as[letter]] for letter in "qkv"]
        rows = sum(one.shape[0] if one.shape else 0 for one in three)
        sources = tuple((headers[stored_as[letter]].file, stored_as[letter]) for letter in "qkv")
        parts[f"vit.{name}"] = Part(sources, three[0].dtype, (rows, *three[0].shape[1:]))
    return parts, left_out


def _apples_name(name: str) -> str:
    number = re.search(r"(?<=layers\.)\d+(?=\.)", name)
    key = name if number is None else name.replace(f"layers.{number[0]}.", "layers.#.", 1)
    stem, _, last = key.rpartition(".")
    if stem not in AIMV2_OF_TRANSFORMERS:
        return name
    theirs = f"{AIMV2_OF_TRANSFORMERS[stem]}.{last}"
    return theirs if number is None else theirs.replace("#", number[0])


def decoder_parts(headers: Headers, config: dict[str, Any]) -> dict[str, Part]:
    """A decoder's tensors by published name; the copy of a tied head is left out."""
    tied = config.get("tie_word_embeddings", False) is True
    names = [name for name in headers if not (tied and name == "lm_head.weight")]
    if not tied and "lm_head.weight" not in headers:
        raise CheckpointError("the decoder has no head, and its config says that it is not tied")
    return {
        f"llm.{name}": Part(((headers[name].file, name),), headers[name].dtype, headers[name].shape)
        for name in names
    }
