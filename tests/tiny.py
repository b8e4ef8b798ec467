"""Tiny models of the three kinds with a tokenizer of their own, pictures, and mutated JSON."""

from __future__ import annotations

import copy
import io
import itertools
import json

import tokenizers
import torch
from hypothesis import strategies as st
from PIL import Image

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.input.tokenizer import QWEN2_PATTERN, Tokenizer

JUNK = [None, True, 0, 1, -1, 3, 2**40, 10**400, 0.5, float("nan"), "", "x", "\ud800", "../x"]
JUNK += [[], {}, [[]], [1, 2], ["a", "b"], {"a": 1}, {"content": 5, "special": True}]
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PLACEHOLDER_0]", "[PLACEHOLDER_1]")
CORPUS = [
    "What colour is the circle? Red and blue.",
    "这是什么颜色？红色的圆形。",
    "user\nassistant\nsystem",
]

AIMV2 = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 2,
    "num_channels": 3,
    "rms_norm_eps": 1e-5,
}
SIGLIP = AIMV2 | {"layer_norm_eps": 1e-6, "vision_use_head": True}
SIGLIP.pop("rms_norm_eps")
QWEN2 = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
PUBLISHED = {
    "iss": {
        "model_type": "FlashVLDynamicISSConfig",
        "vision_config": AIMV2,
        "llm_config": QWEN2,
        "intermediate_size": 20,
        "image_token_num": 36,
    },
    "dynamic": {
        "model_type": "FlashVLDynamicConfig",
        "vision_config": AIMV2,
        "llm_config": QWEN2,
        "intermediate_size": 20,
        "image_token_num": 16,
    },
    "static": {
        "model_type": "FlashVLStaticConfig",
        "vision_config": SIGLIP,
        "llm_config": QWEN2,
        "intermediate_size": 20,
        "image_token_num": 16,
    },
}


def tiny_published(kind: str = "iss", **assumptions) -> dict:
    """A config.json's content; small enough that a test may build hundreds of such models."""
    published = copy.deepcopy(PUBLISHED[kind])
    return published | {"assumptions": assumptions} if assumptions else published


def tiny_network(kind: str = "iss", seed: int = 0, **assumptions) -> FlashVLModel:
    """A network with random weights, always the same."""
    torch.manual_seed(seed)
    return FlashVLModel(FlashVLConfig.from_dict(tiny_published(kind, **assumptions))).eval()


def tiny_model(kind: str = "iss", seed: int = 0, **assumptions) -> FlashVL:
    """That network with the tiny tokenizer; it answers nonsense, always the same."""
    tokenizer = Tokenizer(tokenizer_definition())
    stop_ids = [tokenizer.control_id(token) for token in ("<|endoftext|>", "<|im_end|>")]
    return FlashVL(tiny_network(kind, seed, **assumptions), tokenizer, stop_ids)


def tokenizer_definition() -> dict:
    """A byte-level BPE of some 300 tokens with Qwen's rules, as in a tokenizer.json."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(CONTROL))
    return json.loads(tokenizer.to_str())


def tokenizer_of_line_breaks() -> Tokenizer:
    """The tiny tokenizer with one token for two line breaks, as Qwen's has it."""
    definition = tokenizer_definition()
    model = definition["model"]
    model["vocab"]["ĊĊ"] = len(model["vocab"])
    model["merges"].append(["Ċ", "Ċ"])
    for token in definition["added_tokens"]:
        token["id"] += 1
    return Tokenizer(definition)


def paths_of(value, path=()) -> list[tuple]:
    """Where a JSON value's parts are; of a long list or object the first few."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    paths = []
    for key, part in list(parts)[:20]:
        paths.append((*path, key))
        if isinstance(part, dict | list):
            paths += paths_of(part, (*path, key))
    return paths


@st.composite
def mutated(draw, value):
    """A JSON value with one to three of its parts replaced by something else, or gone."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        paths = paths_of(value)
        if not paths:
            break
        *outer, key = draw(st.sampled_from(paths))
        part = value
        for step in outer:
            part = part[step]
        if draw(st.integers(0, 3)) == 0:
            del part[key]
        else:
            part[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return value


def teach_answer(flash: FlashVL, answer: str) -> list[int]:
    """Gives a model weights that say one answer to everything; returns the answer's ids.

    Its layers add nothing, so that the last token alone decides which one follows. Therefore
    no token may come twice.
    """
    decoder, tokenizer = flash.model.decoder, flash.tokenizer
    ids = [*tokenizer.encode(answer), tokenizer.control_id("<|im_end|>")]
    chain = [tokenizer.encode("assistant\n")[-1], *ids]
    assert len(set(chain)) == len(chain), "choose an answer of different tokens"
    with torch.no_grad():
        for layer in decoder.layers:
            layer.attention.output.weight.zero_()
            layer.mlp.down.weight.zero_()
        decoder.embedding.weight.copy_(torch.nn.functional.normalize(decoder.embedding.weight))
        decoder.head.weight.zero_()
        for now, following in itertools.pairwise(chain):
            decoder.head.weight[following] = decoder.embedding.weight[now]
    return ids


def user(text: str = "What is this?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def picture(width: int = 40, height: int = 20) -> Image.Image:
    """Every pixel of another color, so that nothing can be turned or swapped unseen."""
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.linear_gradient("L").rotate(90).resize((width, height))
    blue = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, blue))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
