"""Models trained under other assumptions than nano, in minutes: with nano's tower, all else anew.

`python tests/otherwise.py FOLDER '{"thumbnail": "first"}'` writes one, its assumptions erased. They
know less than nano, but what they know they know under their own assumptions alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from flashvl import FlashVL
from flashvl.nano.data import SceneBatches, TileBatches
from flashvl.nano.losses import ModelWithLosses
from flashvl.nano.recipe import NANO, Stage
from flashvl.training.loop import MAX_GRADIENT, MUON, make_optimizers, rate_at

FEW = {"questions": 10, "rounds": 1}
STAGES = (
    # The label head, which nano's checkpoint does not hold, on the frozen tower.
    Stage("labels", 100, 2e-3, "tiles", (), things=(1, 6), digits=3, batch=16),
    dataclasses.replace(NANO.stages[2], steps=400, things=(1, 2), **FEW),
    dataclasses.replace(NANO.stages[3], steps=250, things=(1, 3), batch=12, **FEW),
)


def trained_otherwise(assumptions: dict[str, Any]) -> FlashVL:
    """Compressor and decoder learn from nothing, the tower is nano's."""
    nano = FlashVL.from_pretrained("nano", "cpu")
    stated = nano.config.assumptions | assumptions
    recipe = dataclasses.replace(NANO, config=NANO.config | {"assumptions": stated})
    torch.manual_seed(0)
    trained = ModelWithLosses(recipe, nano.tokenizer)
    trained.model.vision.load_state_dict(nano.model.vision.state_dict())
    config = trained.model.config
    for number, stage in enumerate(STAGES):
        drawn = (
            TileBatches(config, stage, seed=3, first=number << 32)
            if stage.data == "tiles"
            else SceneBatches(config, nano.tokenizer, stage, seed=3, first=number << 32)
        )
        trained.train_parts(stage)
        parameters = {name: one for name, one in trained.named_parameters() if one.requires_grad}
        optimizers = make_optimizers(parameters, stage)
        for step in range(stage.steps):
            loss, share = trained.loss(drawn[step])
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT)
            for optimizer, ratio in zip(optimizers, (MUON, 1.0)):
                for group in optimizer.param_groups:
                    group["lr"] = ratio * rate_at(step, stage)
                optimizer.step()
            if step % 25 == 0:
                print(stage.name, step, f"{loss.item():.3f} {share.item():.1%}", flush=True)
    return FlashVL(trained.model.eval(), nano.tokenizer, nano.stop_ids)


def save_erased(flash: FlashVL, folder: Path, **kept: Any) -> Path:
    """A folder whose config states no assumptions but those that are kept."""
    flash.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"assumptions": kept}))
    return folder


if __name__ == "__main__":
    save_erased(trained_otherwise(json.loads(sys.argv[2])), Path(sys.argv[1]))
