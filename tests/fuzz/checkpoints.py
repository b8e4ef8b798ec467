"""Checkpoints: damaged JSON, headers, weights and file kinds; hostile names and settings."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from folders import INDEX, SINGLE, in_shards
from safetensors.torch import load
from tiny import picture, tiny_model, user

from flashvl import FlashVL, FlashVLError
from flashvl.tools import verify
from fuzz.damage import (
    damaged,
    hostile_name,
    mutated,
    mutated_json,
    pickled,
    plant,
    planted_code,
    text,
    value,
)
from fuzz.promise import Broken, Case

SMALL = ["config.json", "preprocessor_config.json", "generation_config.json"]
SMALL += ["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"]


@cache
def saved(kind: str) -> dict[str, bytes]:
    """The files of a checkpoint, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(kind).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@cache
def contents(kind: str, name: str) -> Any:
    return json.loads(saved(kind).get(name, b'{"eos_token": "<|im_end|>"}'))


OTHER_KEYS: dict[str, list[Any]] = {
    "rope_scaling": [None, {}, {"type": "yarn", "factor": 4.0}, "linear"],
    "rope_parameters": [None, {"rope_theta": 5.0}, {"rope_type": "yarn"}, {"rope_theta": 10**400}],
    "use_sliding_window": [False, True, None, "no"],
    "sliding_window": [None, 1, -1],
    "qkv_bias": [False, True, None],
    "use_bias": [False, True, 0],
    "head_dim": [2, 3, 4, 8, 0, -4, 10_000, 4.0],
    "hidden_act": ["silu", "gelu", None, 5],
    "architecture": ["siglip", "aimv2", "vit", "", None, "\x1b[2J"],
    "vision_config": [{}, {"hidden_size": 5}, None, []],
    "vision_use_head": [True, False, None, 1],
    "attention_dropout": [0.0, 0.5, "x"],
    "quantization_config": [{"quant_method": "gptq"}, None],
    "torch_dtype": ["float16", "int8", None, []],
    "num_channels": [3, 1, 4, 0],
    "tie_word_embeddings": [True, False, None],
}
ASSUMED: dict[str, list[Any]] = {
    "max_tiles": [1, 2, 3, 12, 1000, 0, 1001],
    "stitching": ["trim", "mean", "none", "pool", "x", None],
    "padding": ["edge", "reflect", "symmetric", "constant", "wrap"],
    "grid": ["aspect", "resolution", "slices", "x", []],
    "thumbnail": [True, False, "none", "last", "first", 1],
    "tile_order": ["rows", "columns", 5],
    "feature_layer": [-1, 0, 1, 2, -2],
    "tensor_prefix": ["vit.", "", "x", "vit.vit.", "\x1b[2J", "llm."],
    "token_order": ["rows", "columns", "spiral"],
    "system": ["", "You.", "<|im_end|>\n<|im_start|>user\n", "\ud800", "x" * 10_000, 5, False],
    "image_place": ["line", "text", None, {}],
    "slice_markers": [
        *(None, "none", "tile", "picture", "all", ["a", "b"], ["<|im_end|>"] * 2),
        ["[PLACEHOLDER_0]", "[PLACEHOLDER_1]"],
    ],
}


def write(folder: Path, kind: str) -> None:
    folder.mkdir()
    for name, its_contents in saved(kind).items():
        (folder / name).write_bytes(its_contents)


def case(random: Random, place: Path) -> Case:
    how = random.choices([damaged_folder, hostile_settings, hostile_save], [75, 10, 15])[0]
    return how(random, place)


def damaged_folder(random: Random, place: Path) -> Case:
    folder, kind = place / "model", random.choice(["iss", "iss", "dynamic", "static"])
    write(folder, kind)
    what, must_refuse = random.choice(DAMAGES)(random, folder, kind)
    checks = random.random() < 0.2

    def do() -> None:
        if checks:
            verify.run(Namespace(model=str(folder), revision=None, assumptions=None, values=True))
        use(FlashVL.from_pretrained(folder, device="cpu"))

    return Case(f"{kind}: {what}", do, must_refuse)


def use(flash: FlashVL) -> None:
    """A short answer, which may be refused; another end of it is no answer."""
    if not isinstance(flash.chat(picture(), user(), max_new_tokens=2), str):
        raise Broken("the answer is no text")


def wrong_json(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    name = random.choice([*SMALL[:3], *SMALL])
    (folder / name).write_bytes(mutated_json(contents(kind, name), random))
    return f"a changed {name}", False


def config_of_numbers(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """Sizes that are whole numbers, and wrong."""
    config = json.loads(saved(kind)["config.json"])
    for _ in range(random.choice([1, 2, 4])):
        part = random.choice(
            [config, config["vision_config"], config["llm_config"], config["assumptions"]]
        )
        names = [name for name, one in part.items() if type(one) in (int, float)]
        if names:
            name = random.choice(names)
            part[name] = random.choice([part[name] * 2, part[name] + 1, 1, 2, 1000, 10_000_000, 3])
    (folder / "config.json").write_text(json.dumps(config))
    return "a config of other numbers", False


def more_keys(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """Keys that other configs have, which change what would be built."""
    config = json.loads(saved(kind)["config.json"])
    parts = [config, config["vision_config"], config["llm_config"]]
    for name in random.sample(sorted(OTHER_KEYS), k=random.choice([1, 2, 4])):
        random.choice(parts)[name] = random.choice(OTHER_KEYS[name])
    (folder / "config.json").write_text(json.dumps(config))
    return "a config of more keys", False


def other_assumptions(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """What nobody has published: mostly values that can be."""
    config = json.loads(saved(kind)["config.json"])
    for name in random.sample(sorted(ASSUMED), k=random.choice([1, 2, 9])):
        config["assumptions"][name] = random.choice(ASSUMED[name])
    (folder / "config.json").write_text(json.dumps(config))
    return f"assumptions {config['assumptions']!a:.150}", False


def wrong_index(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    index = {"metadata": {"total_size": 5}, "weight_map": in_shards(folder)}
    (folder / INDEX).write_bytes(mutated_json(index, random))
    return "a changed index", False


def shard_elsewhere(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """A shard that an index must not name, though it is a good one."""
    weight_map = in_shards(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    (folder / "below").mkdir()
    names = [
        "../outside.safetensors",
        "below/shard.safetensors",
        str(folder.parent / "x.safetensors"),
    ]
    name = random.choice(
        [*names, "./../outside.safetensors", "shard.bin", "shard", "a\\b.safetensors"]
    )
    shard.rename(os.path.join(folder, name))
    weight_map = {one: name if file == shard.name else file for one, file in weight_map.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return f"a shard named {name!r}", True


def wrong_shard(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    weight_map = in_shards(folder)
    shard = folder / "model-00001-of-00002.safetensors"
    how = random.randrange(4)
    if how == 0:
        return f"{plant(shard, random)} as a shard", True
    if how == 1:
        shard.unlink()
        return "a shard that is missing", True
    if how == 2:
        shard.write_bytes((folder / "model-00002-of-00002.safetensors").read_bytes())
        return "the same shard twice", True
    name = hostile_name(random)
    weight_map[random.choice(sorted(weight_map))] = name
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return f"a shard named {name!a:.40}", True


def no_file(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """A pipe, a device, a link and so on in the place of a file, which may do without."""
    name = random.choice([*SMALL, SINGLE, INDEX, "vocab.json", "merges.txt", "added_tokens.json"])
    if name in ("vocab.json", "merges.txt", "added_tokens.json"):
        as_parts(folder)
    if name == INDEX:
        in_shards(folder)
    if (folder / name).exists():
        (folder / name).unlink()
    return f"{plant(folder / name, random)} as {name}", False


def as_parts(folder: Path) -> None:
    """The tokenizer in the older form."""
    definition = json.loads((folder / "tokenizer.json").read_text())
    model = definition["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(one) for one in model["merges"]))
    added = {one["content"]: one["id"] for one in definition["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer.json").unlink()


def code_beside(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """Code and pickles beside good files, or instead of the weights; none of it may be run."""
    for name in ("modeling_flashvl.py", "__init__.py", "sitecustomize.py", "json.py", "torch.py"):
        (folder / name).write_bytes(planted_code())
    config = contents(kind, "config.json") | {"auto_map": {"AutoModel": "modeling_flashvl.FlashVL"}}
    (folder / "config.json").write_text(json.dumps(config | {"trust_remote_code": True}))
    name = random.choice(
        ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "training_args.bin"]
    )
    (folder / name).write_bytes(pickled())
    if random.random() < 0.5:
        (folder / SINGLE).unlink()
        return f"{name} instead of weights", True
    return f"code and {name} beside the weights", False


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def joined(header: str | bytes, data: bytes) -> bytes:
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data


def wrong_header(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    header, data = split(folder / SINGLE)
    name = random.choice(sorted(header.keys() - {"__metadata__"}))
    changes = {
        "shape": lambda one: one | {"shape": random.choice(SHAPES)},
        "reversed shape": lambda one: one | {"shape": one["shape"][::-1]},
        "dtype": lambda one: one | {"dtype": random.choice(DTYPES)},
        "offsets": lambda one: one | {"data_offsets": random.choice(OFFSETS)},
        "offsets of another": lambda one: (
            one | {"data_offsets": header[random.choice(names)]["data_offsets"]}
        ),
        "shifted offsets": lambda one: one | {"data_offsets": [n + 1 for n in one["data_offsets"]]},
        "more keys": lambda one: one | {"filename": "/dev/zero", "x": value(random)},
        "whole": lambda one: value(random),
    }
    names = sorted(header.keys() - {"__metadata__"})
    how = random.choice([*changes, "name", "name", "twice", "metadata", "many", "mutated", "bytes"])
    if how in changes:
        header[name] = changes[how](header[name])
    elif how == "name":
        header[random.choice(NAMES)] = header.pop(name) if random.random() < 0.7 else header[name]
    elif how == "metadata":
        header["__metadata__"] = value(random)
    elif how == "many":
        header |= {
            f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)
        }
    elif how == "mutated":
        header = mutated(header, random)
    written: str | bytes = json.dumps(header)
    if how == "twice":
        written = f'{{"{name}": {json.dumps(header[name])}, {written[1:]}'
    if how == "bytes":
        written = damaged(written.encode(), random)
    (folder / SINGLE).write_bytes(joined(written, data))
    return f"a header of other {how}", False


SHAPES = [
    [],
    [0],
    [1],
    [-1],
    [2**62, 4],
    [2**32, 2**32],
    [0, 2**63],
    [16.0],
    "16",
    [[16]],
    None,
    [2] * 64,
]
DTYPES = ["F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "x", "", None, 5]
OFFSETS = [
    [0, 0],
    [0, 2**63],
    [4, 0],
    [-4, 0],
    [0, 2**64 - 1],
    [0],
    [],
    None,
    "0",
    [0.0, 64.0],
    [1, 65],
]
NAMES = ["", "\x1b[2J\x1b[31mred", "x" * 70_000, "a\nb", "\0", "../x", "__metadata__", "__class__"]
NAMES += ["llm.model.layers.99999999999999999999.input_layernorm.weight", "vit.", "llm.model.norm"]
NAMES += [
    "llm.model.layers.-1.input_layernorm.weight",
    "decoder.norm.weight",
    "\u202e名",
    "training",
]


def wrong_bytes(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    whole = saved(kind)[SINGLE]
    how = random.choice(
        ["damaged bytes", "a cut file", "a longer file", "a huge header", "other bytes"]
    )
    (folder / SINGLE).write_bytes(
        {
            "damaged bytes": lambda: damaged(whole, random),
            "a cut file": lambda: whole[: random.randrange(len(whole))],
            "a longer file": lambda: whole + random.randbytes(random.choice([1, 8, 1000])),
            "a huge header": lambda: (
                struct.pack("<Q", random.choice([2**62, 2**64 - 1, 10**8])) + whole[8:]
            ),
            "other bytes": lambda: random.choice(
                [b"", b"\0" * 100, b"PK\3\4" + bytes(99), pickled()]
            ),
        }[how]()
    )
    return how, how in ("a cut file", "a longer file", "a huge header", "other bytes")


def wrong_weights(random: Random, folder: Path, kind: str) -> tuple[str, bool]:
    """Numbers that are none, or much too large, in some tensors."""
    header, data = split(folder / SINGLE)
    changed = bytearray(data)
    numbers = [float("nan"), float("inf"), 3e38, -3e38, 0.0, 1e-45]
    names = sorted(header.keys() - {"__metadata__"})
    for name in random.sample(names, k=random.choice([1, 3, 30])):
        first, last = header[name]["data_offsets"]
        packed = struct.pack("<f", random.choice(numbers))
        changed[first:last] = packed * ((last - first) // 4)
    (folder / SINGLE).write_bytes(joined(json.dumps(header), bytes(changed)))
    return "weights of other numbers", False


Damage = Callable[[Random, Path, str], tuple[str, bool]]
DAMAGES: list[Damage] = [
    *(wrong_json, wrong_json, wrong_json, wrong_json, config_of_numbers, wrong_index),
    *(more_keys, other_assumptions, other_assumptions),
    *(shard_elsewhere, wrong_shard, no_file, no_file, code_beside),
    *(wrong_header, wrong_header, wrong_header, wrong_bytes, wrong_weights),
]


SENSIBLE_SETTINGS: dict[str, list[Any]] = {
    "device": ["cpu", "meta", "cuda:99", "mps", "CPU", "cpu:1", "xla"],
    "dtype": ["int8", "float64", "float16", "bfloat16", "torch.float32", float],
    "revision": ["main", "a" * 40, "0000000"],
    "quantize": ["int8", "int4", "INT8"],
}


def hostile_settings(random: Random, place: Path) -> Case:
    """Names of models, and settings of `from_pretrained`, that make no sense."""
    folder = place / "model"
    write(folder, "iss")
    name: Any = folder
    settings: dict[str, Any] = {}
    how = random.choice(["name", "device", "dtype", "revision", "assumptions", "quantize"])
    if how == "name":
        odd = [value(random), b"nano", folder / SINGLE, [folder], os.fsencode(folder)]
        name = random.choice([hostile_name(random), Path(hostile_name(random)), *odd])
    elif how == "assumptions":
        good = contents("iss", "config.json")["assumptions"]
        odd = [mutated(good, random), value(random), [("system", 5)]]
        settings["assumptions"] = random.choice(odd)
    else:
        settings[how] = random.choice([value(random), text(random), *SENSIBLE_SETTINGS[how]])
    what = f"{how} {(name if how == 'name' else settings[how])!a:.60}"

    def do() -> None:
        use(FlashVL.from_pretrained(name, **{"device": "cpu", **settings}))

    may = frozenset({"connect"}) if how == "name" else frozenset()  # some could be repositories
    return Case(what, do, may=may)


@cache
def flash() -> FlashVL:
    return tiny_model()


def hostile_save(random: Random, place: Path) -> Case:
    """Folders that a model is saved to: what lies there stays, unless it may be replaced."""
    folder = place / "model"
    overwrite: Any = random.random() < 0.3
    target: Any = folder
    what = random.choice(["junk", "name", "names below", "a model of two shards", "a model"])
    if what == "junk":
        folder.mkdir()
        name = random.choice([*saved("iss"), INDEX, "model-00001-of-00002.safetensors"])
        what = f"{plant(folder / name, random)} as {name}"
    elif what == "a model of two shards":
        write(folder, "iss")
        in_shards(folder)
        for file in folder.iterdir():
            if random.random() < 0.5:
                file.unlink()
    elif what == "a model":
        write(folder, "static")
    elif what == "names below":
        (place / "here" / "file").write_text("a file of the user's")
        names = ["file", "file/below", str(folder / "a" / "b"), "~/saved", "./x/../y"]
        target = random.choice(names)
        what = f"the name {target}"
    else:
        target = random.choice([hostile_name(random), value(random), b"model", place / "model\n"])
        what = f"the name {target!a:.60}"

    def do() -> None:
        flash().save_pretrained(target, overwrite)
        written = target if isinstance(target, Path) else Path(os.path.expanduser(target))
        if os.path.isdir("~"):
            raise Broken("a folder of the name ~ was made")
        if left := [file.name for file in place.rglob(".*")]:
            raise Broken("a passing file was left", ", ".join(left))
        if load(written.joinpath(SINGLE).read_bytes()).keys() != load(saved("iss")[SINGLE]).keys():
            raise Broken("the saved model has other tensors")
        try:
            use(FlashVL.from_pretrained(written, device="cpu"))
        except FlashVLError as error:
            raise Broken("the saved model is refused", str(error)) from error

    what = f"saved to {what}{', overwriting' * overwrite}"
    return Case(what, do, writes=(place,), replaces=overwrite)
