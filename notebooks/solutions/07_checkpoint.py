"""Solutions to the exercises of 07_checkpoint.ipynb.

Run from the folder of the notebooks: python solutions/07_checkpoint.py
"""

import json
import struct

import torch
from safetensors.torch import load
from torch import Tensor

from flashvl import FlashVLConfig, FlashVLModel
from flashvl.checkpoint.hub import find_model, published_models
from flashvl.checkpoint.save import published_state


def exercise_1() -> None:
    """The header's length, the header, six floats of four bytes each.

    Spaces up to a multiple of eight are a courtesy: the data then begin at an address that suits
    the processor.
    """
    entry = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(entry).encode()
    text += b" " * (-len(text) % 8)
    written = struct.pack("<Q", len(text)) + text + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    assert torch.equal(load(written)["x"], torch.tensor([[1.0, 2, 3], [4, 5, 6]]))


def cut(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    """The names of each shard, in order."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def exercise_2() -> None:
    """On the meta device a change of dtype costs nothing; the sum is four bytes a parameter."""
    published = published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]
    with torch.device("meta"):
        model = FlashVLModel(FlashVLConfig.from_dict(published["config"])).to(torch.bfloat16)
    wide = {name: tensor.float() for name, tensor in published_state(model).items()}
    shards = cut(wide, limit=5 * 10**9)
    sizes = [sum(wide[name].nbytes for name in shard) for shard in shards]
    print("float32:", sizes, "the second begins with", shards[1][0])
    assert len(shards) == 3
    assert sum(sizes) == 4 * published["parameters"]

    halves = cut(published_state(model), limit=10**9)
    print("bfloat16 at 1 GB:", len(halves), "files")
    assert len(halves) >= 2 * published["parameters"] / 10**9


def exercise_3() -> None:
    """The first matrix has the shape (width, colors, patch, patch), positions a row for each patch.

    Layers can be counted by their numbers. No shape tells how many heads attention has (only
    their common width is there), the rotation's base, the context, or the eps of the norms.
    That is why config.json is needed.
    """
    folder = find_model("nano")
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    shapes = {name: entry["shape"] for name, entry in header.items()}

    width, _, _, patch = shapes["vit.preprocessor.patchifier.proj.weight"]
    patches = shapes["vit.preprocessor.pos_embed"][-2]
    hidden = shapes["adp.p0.1.weight"][0]
    vocabulary, decoder_width = shapes["llm.model.embed_tokens.weight"]
    layers = {name.split(".")[3] for name in shapes if name.startswith("llm.model.layers.")}

    config = FlashVLConfig.from_dict(json.loads((folder / "config.json").read_text()))
    vision, decoder = config.vision, config.decoder
    assert (width, patch, patches) == (vision.width, vision.patch_size, vision.patches)
    assert hidden == config.compressor.hidden_width
    assert (len(layers), decoder_width) == (decoder.layers, decoder.width)
    assert vocabulary == decoder.vocabulary
    assert ("llm.lm_head.weight" not in shapes) == decoder.tied_head


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
