"""The one table of tensor names: as published, and ours. `#` stands for a layer's number."""

from __future__ import annotations

import re

AIMV2 = {
    "preprocessor.patchifier.proj": "vision.patch_embedding",
    "preprocessor.patchifier.norm": "vision.patch_norm",
    "preprocessor.pos_embed": "vision.positions",
    "trunk.blocks.#.norm_1": "vision.layers.#.attention_norm",
    "trunk.blocks.#.attn.qkv": "vision.layers.#.attention.qkv",
    "trunk.blocks.#.attn.proj": "vision.layers.#.attention.output",
    "trunk.blocks.#.norm_2": "vision.layers.#.mlp_norm",
    "trunk.blocks.#.mlp.fc1": "vision.layers.#.mlp.gate",
    "trunk.blocks.#.mlp.fc3": "vision.layers.#.mlp.up",
    "trunk.blocks.#.mlp.fc2": "vision.layers.#.mlp.down",
    "trunk.post_trunk_norm": "vision.norm",
}
SIGLIP = {
    "embeddings.patch_embedding": "vision.patch_embedding",
    "embeddings.position_embedding.weight": "vision.positions",
    "encoder.layers.#.layer_norm1": "vision.layers.#.attention_norm",
    "encoder.layers.#.self_attn.q_proj": "vision.layers.#.attention.query",
    "encoder.layers.#.self_attn.k_proj": "vision.layers.#.attention.key",
    "encoder.layers.#.self_attn.v_proj": "vision.layers.#.attention.value",
    "encoder.layers.#.self_attn.out_proj": "vision.layers.#.attention.output",
    "encoder.layers.#.layer_norm2": "vision.layers.#.mlp_norm",
    "encoder.layers.#.mlp.fc1": "vision.layers.#.mlp.up",
    "encoder.layers.#.mlp.fc2": "vision.layers.#.mlp.down",
    "post_layernorm": "vision.norm",
    "head.probe": "vision.pooling_head.probe",
    "head.attention": "vision.pooling_head.attention",
    "head.layernorm": "vision.pooling_head.norm",
    "head.mlp.fc1": "vision.pooling_head.mlp.up",
    "head.mlp.fc2": "vision.pooling_head.mlp.down",
}
VISION = {"aimv2": AIMV2, "siglip": SIGLIP}
COMPRESSOR_AND_DECODER = {
    "adp.p0.0": "compressor.norm",
    "adp.p0.1": "compressor.expand",
    "adp.p0.3": "compressor.hidden",
    "adp.proj": "compressor.output",
    "llm.model.embed_tokens": "decoder.embedding",
    "llm.model.layers.#.input_layernorm": "decoder.layers.#.attention_norm",
    "llm.model.layers.#.self_attn.q_proj": "decoder.layers.#.attention.query",
    "llm.model.layers.#.self_attn.k_proj": "decoder.layers.#.attention.key",
    "llm.model.layers.#.self_attn.v_proj": "decoder.layers.#.attention.value",
    "llm.model.layers.#.self_attn.o_proj": "decoder.layers.#.attention.output",
    "llm.model.layers.#.post_attention_layernorm": "decoder.layers.#.mlp_norm",
    "llm.model.layers.#.mlp.gate_proj": "decoder.layers.#.mlp.gate",
    "llm.model.layers.#.mlp.up_proj": "decoder.layers.#.mlp.up",
    "llm.model.layers.#.mlp.down_proj": "decoder.layers.#.mlp.down",
    "llm.model.norm": "decoder.norm",
    "llm.lm_head": "decoder.head",
}


def published_name(name: str, architecture: str, prefix: str) -> str:
    """Our parameter name -> the published tensor name; `prefix` stands before the tower's.

    A name that is not in the table stays: so are a new tower's names stored.
    """
    table = {ours: theirs for theirs, ours in _table(architecture, prefix).items()}
    return _translate(name, table)


def our_name(name: str, architecture: str, prefix: str) -> str:
    """A published tensor name -> our parameter name; a name that is not in the table stays."""
    return _translate(name, _table(architecture, prefix))


def _table(architecture: str, prefix: str) -> dict[str, str]:
    tower = {prefix + theirs: ours for theirs, ours in VISION.get(architecture, {}).items()}
    return tower | COMPRESSOR_AND_DECODER


# The number of a layer: between two dots, in a name that has a list of layers or blocks.
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _translate(name: str, table: dict[str, str]) -> str:
    """Replaces the part of a name that is in the table; `.weight` and the like may follow it."""
    number = LAYER_NUMBER.search(name) if "layers." in name or "blocks." in name else None
    key = f"{name[: number.start()]}#{name[number.end() :]}" if number else name
    stem, ending = key, ""
    while stem not in table:
        stem, dot, last = stem.rpartition(".")
        if not dot:
            return name  # no part of it is in the table
        ending = dot + last + ending
    translated = table[stem] + ending
    return translated.replace("#", number.group()) if number else translated
