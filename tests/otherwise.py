"""Small models trained under other assumptions than nano, in minutes: nano, taught to read anew.

`python otherwise.py FOLDER STEPS '{"thumbnail": "first"}'` writes one, its assumptions erased.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flashvl import FlashVL, FlashVLModel
from flashvl.nano.data import SceneBatches
from flashvl.nano.recipe import NANO, READER
from flashvl.training.loop import make_optimizers, rate_at

RATE = 3e-4  # at a higher one it forgets before it learns


def trained_otherwise(assumptions: dict[str, Any], steps: int) -> FlashVL:
    """Compressor and decoder go on learning, the tower stays."""
    nano = FlashVL.from_pretrained("nano", "cpu")
    model = FlashVLModel(nano.config.with_assumptions(assumptions))
    model.load_state_dict(nano.model.state_dict())
    stage = dataclasses.replace(NANO.stages[-1], steps=steps, batch=12, rate=RATE)
    batches = SceneBatches(model.config, nano.tokenizer, stage, seed=3, first=0)
    model.requires_grad_(False)
    for part in READER:
        model.get_submodule(part).requires_grad_(True)
    optimizers = make_optimizers(dict(model.named_parameters()), stage)
    for step in range(steps):
        batch = batches[step]
        logits = model(
            batch.input_ids,
            batch.pixels,
            batch.grids,
            positions=batch.positions,
            mask=batch.mask,
            logits_at=batch.before_answer,
        )
        loss = F.cross_entropy(logits, batch.labels[batch.is_answer])
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, stage)
            optimizer.step()
        if step % 20 == 0:
            print(step, round(loss.item(), 3), file=sys.stderr, flush=True)
    return FlashVL(model.eval(), nano.tokenizer, nano.stop_ids)


def save_erased(flash: FlashVL, folder: Path, **kept: Any) -> Path:
    """A folder whose config states no assumptions but those that are kept."""
    flash.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"assumptions": kept}))
    return folder


if __name__ == "__main__":
    save_erased(trained_otherwise(json.loads(sys.argv[3]), int(sys.argv[2])), Path(sys.argv[1]))
