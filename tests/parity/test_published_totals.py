"""The four published models on the meta device: totals and file sizes of the real files."""

from __future__ import annotations

import huggingface_hub
import pytest
import torch

from flashvl import FlashVLConfig, FlashVLModel
from flashvl.checkpoint.hub import published_models
from flashvl.checkpoint.save import published_state

# From the reference of the published files: parameters, and bytes of each file's tensors.
FACTS = {
    "FlashVL/FlashVL-2B-Dynamic-ISS": ("753a872", 2_532_538_880, [4_940_279_808, 124_797_952]),
    "FlashVL/FlashVL-2B-Dynamic": ("7230176", 2_565_578_240, [4_918_263_808, 212_892_672]),
    "FlashVL/FlashVL-2B-Static": ("8155cef", 2_301_306_304, [4_602_612_608]),
    "FlashVL/FlashVL-2B-Static-GRPO": ("247943c", 2_301_306_304, [4_602_612_608]),
}


def test_the_list_of_published_models():
    known = {
        name: (entry["revision"], entry["parameters"], entry["shard_bytes"])
        for name, entry in published_models().items()
    }
    assert known == FACTS


@pytest.mark.parametrize("repository", FACTS)
def test_totals_and_file_sizes(repository):
    _, parameters, shard_bytes = FACTS[repository]
    config = FlashVLConfig.from_dict(published_models()[repository]["config"])
    with torch.device("meta"):
        model = FlashVLModel(config).to(torch.bfloat16)
    state = published_state(model)
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    split = huggingface_hub.split_torch_state_dict_into_shards(state, max_shard_size="5GB")
    sizes = [
        sum(state[name].nbytes for name in names) for names in split.filename_to_tensors.values()
    ]
    assert sizes == shard_bytes
    if repository.endswith("ISS"):
        last = list(split.filename_to_tensors.values())[-1]
        assert {name.rpartition(".")[0] for name in last} == {"adp.p0.3", "adp.proj"}
