"""Random small checkpoints in the published layout, made of transformers' own modules.

The published names are written out here once more, from the reference of the published files and
not from `flashvl.checkpoint.tensor_names`, so that a mistake there cannot hide.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reference import Reference
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from vocabulary import VOCABULARIES, reference_tokenizer, write_tokenizer

MODEL_TYPES = {
    "dynamic-iss": "FlashVLDynamicISSConfig",
    "dynamic": "FlashVLDynamicConfig",
    "static": "FlashVLStaticConfig",
}
KINDS = tuple(MODEL_TYPES)
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = {
    "image_processor_type": "SiglipImageProcessor",
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

# On matrices this small threads only wait for one another.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Spec:
    """Sizes and form of a checkpoint. `side` counts the patches along a tile."""

    kind: str = "dynamic-iss"
    seed: int = 0
    tower_width: int = 48
    tower_mlp_width: int = 80
    tower_layers: int = 3
    tower_heads: int = 3
    patch: int = 4
    side: int = 8
    compressor_width: int = 56
    width: int = 64
    mlp_width: int = 96
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    tower_eps: float = 3e-4  # not the published values: a wrong one must show
    eps: float = 2e-4
    rope_theta: float = 30_000.0
    context: int = 2048
    unused_rows: int = 10  # of the vocabulary, beyond the tokenizer's last id
    tied: bool = False
    config_says_tied: bool | None = None  # if it is wrong; the base model's config is
    config_by_library: bool = False  # with every key that transformers writes
    shards: int = 1
    vocabulary: str = "small"  # or "real"
    tokenizer_form: str = "json"  # or "parts"
    dtype: torch.dtype = torch.float32  # of the file
    assumptions: dict[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> int:
        """Patches of a tile's margin, an eighth of its side."""
        return self.side // 8 if self.kind == "dynamic-iss" else 0

    @property
    def tokens_per_tile(self) -> int:
        iss = self.kind == "dynamic-iss"
        return (self.side - 2 * self.margin) ** 2 if iss else (self.side // 2) ** 2


def make_checkpoint(folder: Path, **sizes: Any) -> Reference:
    """Writes a checkpoint with random weights (see `Spec`) and returns what it must compute."""
    spec = Spec(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(spec)
    torch.manual_seed(spec.seed)
    tower, compressor, decoder = build_modules(spec, config)
    for module in (tower, compressor, decoder):
        randomize(module, spec.dtype)
    tensors = published_tensors(spec, tower, compressor, decoder)
    write_tensors(folder, {k: v.to(spec.dtype) for k, v in tensors.items()}, spec.shards)
    if spec.config_by_library:
        config["vision_config"] |= tower.config.to_dict()
        config["llm_config"] = decoder.config.to_dict()
    if spec.config_says_tied is not None:
        config["llm_config"]["tie_word_embeddings"] = spec.config_says_tied
    _write(folder / "config.json", config)
    size = spec.side * spec.patch
    preprocessor = (SIGLIP if spec.kind == "static" else CLIP) | {
        "size": {"height": size, "width": size}
        if spec.kind == "static"
        else {"shortest_edge": size}
    }
    _write(folder / "preprocessor_config.json", preprocessor)
    write_tokenizer(folder, spec.vocabulary, spec.tokenizer_form)
    added = VOCABULARIES[spec.vocabulary]().added()
    stop_ids = [added["<|im_end|>"], added["<|endoftext|>"]]
    set_stop_ids(folder, stop_ids)
    return Reference(
        spec=spec,
        tower=tower,
        compressor=compressor,
        decoder=decoder,
        tokenizer=reference_tokenizer(spec.vocabulary),
        stop_ids=stop_ids,
    )


def published_config(spec: Spec) -> dict[str, Any]:
    """A config.json with the published names, and some keys that a loader must not mind."""
    aimv2 = spec.kind != "static"
    return {
        "architectures": [MODEL_TYPES[spec.kind].removesuffix("Config")],
        "model_type": MODEL_TYPES[spec.kind],
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "aimv2" if aimv2 else "siglip_vision_model",
            "hidden_size": spec.tower_width,
            "intermediate_size": spec.tower_mlp_width,
            "num_hidden_layers": spec.tower_layers,
            "num_attention_heads": spec.tower_heads,
            "num_channels": 3,
            "image_size": spec.side * spec.patch,
            "patch_size": spec.patch,
            "proj_output_dim": spec.width,
        }
        | {"rms_norm_eps" if aimv2 else "layer_norm_eps": spec.tower_eps},
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": len(VOCABULARIES[spec.vocabulary]()) + spec.unused_rows,
            "hidden_size": spec.width,
            "intermediate_size": spec.mlp_width,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.key_value_heads,
            "max_position_embeddings": spec.context,
            "max_window_layers": spec.layers,
            "rope_theta": spec.rope_theta,
            "rms_norm_eps": spec.eps,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "tie_word_embeddings": spec.tied,
        },
        "intermediate_size": spec.compressor_width,
        "image_token_num": spec.tokens_per_tile,
    } | ({"assumptions": spec.assumptions} if spec.assumptions else {})


def build_modules(
    spec: Spec, config: dict[str, Any]
) -> tuple[nn.Module, nn.Sequential, Qwen2ForCausalLM]:
    """Tower, compressor and decoder with eager attention, the plainest that transformers has."""
    vision = {k: v for k, v in config["vision_config"].items() if k != "model_type"}
    vision["attn_implementation"] = "eager"
    if spec.kind == "static":
        tower = SiglipVisionModel(SiglipVisionConfig(**vision))
    else:
        tower = Aimv2VisionModel(Aimv2VisionConfig(**vision, use_head=False))
    folded = spec.tower_width * (1 if spec.kind == "dynamic-iss" else 4)
    compressor = nn.Sequential(
        nn.LayerNorm(folded),
        nn.Linear(folded, spec.compressor_width),
        nn.GELU(),
        nn.Linear(spec.compressor_width, spec.compressor_width),
        nn.GELU(),
        nn.Linear(spec.compressor_width, spec.width),
    )
    llm = {k: v for k, v in config["llm_config"].items() if k != "model_type"}
    decoder = Qwen2ForCausalLM(Qwen2Config(**llm, attn_implementation="eager"))
    return tower.eval(), compressor.eval(), decoder.eval()


@torch.no_grad()
def randomize(module: nn.Module, dtype: torch.dtype) -> None:
    """Random values in every tensor, exact in `dtype`: no norm of ones, no bias of zeros.

    The sizes of the values keep greedy answers from repeating one token.
    """
    for name, parameter in module.named_parameters():
        if "norm" in name or name.startswith("0."):  # the compressor starts with a LayerNorm
            parameter.normal_(0.5 if name.endswith("weight") else 0.0, 1.0)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        elif "embed_tokens" in name or "position_embedding" in name:
            parameter.normal_(0.0, 1.0)
        else:
            parameter.normal_(0.0, 1.3 / math.sqrt(parameter[0].numel()))
        parameter.copy_(parameter.to(dtype))


def published_tensors(
    spec: Spec, tower: nn.Module, compressor: nn.Module, decoder: nn.Module
) -> dict[str, Tensor]:
    """Every tensor under the name that it has in the published files."""
    siglip = spec.kind == "static"
    names = _siglip_tensors(tower) if siglip else _aimv2_tensors(tower, spec.tower_layers)
    tensors = {f"vit.{name}": tensor for name, tensor in names.items()}
    for number, part in enumerate(("p0.0", "p0.1", None, "p0.3", None, "proj")):
        if part:
            tensors[f"adp.{part}.weight"] = compressor[number].weight
            tensors[f"adp.{part}.bias"] = compressor[number].bias
    tensors |= {f"llm.{name}": tensor for name, tensor in decoder.named_parameters()}
    if spec.tied:
        tensors.pop("llm.lm_head.weight", None)
    else:
        assert "llm.lm_head.weight" in tensors
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _siglip_tensors(tower: nn.Module) -> dict[str, Tensor]:
    return dict(tower.named_parameters())


def _aimv2_tensors(tower: nn.Module, layers: int) -> dict[str, Tensor]:
    theirs = dict(tower.named_parameters())
    tensors = {
        "preprocessor.patchifier.proj.weight": theirs["embeddings.patch_embed.weight"],
        "preprocessor.patchifier.proj.bias": theirs["embeddings.patch_embed.bias"],
        "preprocessor.patchifier.norm.weight": theirs["embeddings.rms_norm.weight"],
        "preprocessor.pos_embed": theirs["embeddings.position_embedding.weight"][None],
        "trunk.post_trunk_norm.weight": theirs["rms_norm.weight"],
    }
    for number in range(layers):
        layer, block = f"encoder.layers.{number}", f"trunk.blocks.{number}"
        qkv = [theirs[f"{layer}.attention.{part}_proj.weight"] for part in "qkv"]
        tensors |= {
            f"{block}.norm_1.weight": theirs[f"{layer}.rms_norm1.weight"],
            f"{block}.norm_2.weight": theirs[f"{layer}.rms_norm2.weight"],
            f"{block}.attn.qkv.weight": torch.cat(qkv),
            f"{block}.attn.proj.weight": theirs[f"{layer}.attention.out_proj.weight"],
            f"{block}.mlp.fc1.weight": theirs[f"{layer}.ffn.gate_proj.weight"],
            f"{block}.mlp.fc2.weight": theirs[f"{layer}.ffn.down_proj.weight"],
            f"{block}.mlp.fc3.weight": theirs[f"{layer}.ffn.up_proj.weight"],
        }
    return tensors


def write_tensors(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """One file, or shards (neighbouring tensors in different ones) and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write(folder / "model.safetensors.index.json", index)


def set_stop_ids(folder: Path, stop_ids: list[int]) -> None:
    _write(folder / "generation_config.json", {"eos_token_id": stop_ids, "do_sample": False})


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
