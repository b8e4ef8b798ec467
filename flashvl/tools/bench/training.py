"""A step of training, by turns with transformers and peft on the same weights.

Both sides learn from one conversation about a picture: an adapter of rank `RANK` on all matrices of
the decoder's layers, or compressor and decoder in full; the tower is frozen. Memory is measured in
processes of their own, which `python -m flashvl.tools.bench.training` starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoint.files import read_headers
from ...checkpoint.published import read_config
from ...config import TILE_NEXT, TILE_START
from ...device import choose_device, device_failure_as_error, peak_bytes
from ...errors import DeviceError, FlashVLError
from ...finetuning.batches import Step, Text, lay
from ...finetuning.learner import Learner
from ...finetuning.recipe import read_recipe
from ...input.prompt import IGNORED
from ...reading import Reader
from ...terminal import end_progress, show_progress, table
from ...training.loop import MAX_GRADIENT, Schedule, make_optimizers
from ...training.processes import ALONE
from ..transformers_modules import (
    Published,
    build_compressor,
    build_decoder,
    build_tower,
    import_transformers,
)
from .measure import compare
from .stages import Sizes, grid_of

RANK, RATE = 16, 1e-4
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": RANK},
    "full": {"train": "compressor,decoder"},
}


def sample(folder: Path, sizes: Sizes) -> Text:
    """A picture's places, words, and an answer of `sizes.new` tokens, all of chance."""
    config = read_config(folder, read_headers(folder))
    torch.manual_seed(0)
    side = config.tiler.seen_size
    grid = grid_of(sizes.tiles, config.tiler)
    tiles = config.tiler.tiles(grid)
    pixels = torch.randn(tiles, config.vision.channels, side, side)  # (S, C, height, width)
    places = [TILE_START] + [TILE_NEXT] * (config.tokens_per_tile - 1)
    shown = len(places) * tiles
    asked = max(sizes.prompt - shown, 1)
    ids = places * tiles + torch.randint(config.decoder.vocabulary, (asked + sizes.new,)).tolist()
    labels = [IGNORED] * (len(ids) - sizes.new) + ids[-sizes.new :]
    return Text(ids, labels, pixels, [grid])


def our_step(folder: Path, way: str, text: Text, device: torch.device) -> Callable[[], float]:
    """What does a step at each call -> its loss before the step."""
    recipe = read_recipe(Reader({"data": "none", "dtype": "float32", **WAYS[way]}, "bench"))
    learner = Learner.load(recipe, str(folder), None, device, ALONE)
    step = Step([lay([text])])
    schedule = Schedule("bench", 1, RATE)
    optimizers = make_optimizers(learner.choose(learner.all_parts), schedule, muon=False)

    def run() -> float:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, _ = learner.loss(step)
        nn.utils.clip_grad_norm_(list(learner.chosen.values()), MAX_GRADIENT)
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    return run


def their_step(folder: Path, way: str, text: Text, device: torch.device) -> Callable[[], float]:
    """As users of both libraries write it: logits and loss of all positions by `labels`."""
    peft = import_peft()
    config, published = read_config(folder, read_headers(folder)), Published(folder)
    assert text.pixels is not None
    pixels = text.pixels.to(device)  # (S, C, height, width)
    tower = build_tower(published, config.vision, pixels.shape[-1]).to(device).requires_grad_(False)
    compressor = build_compressor(published).to(device)
    decoder: Any = build_decoder(published).to(device)
    if way == "lora":
        compressor.requires_grad_(False)
        chosen = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        decoder = peft.get_peft_model(decoder, chosen)
    every = [*compressor.parameters(), *decoder.parameters()]
    learned = [one for one in every if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE)
    ids = torch.tensor([text.ids], device=device)  # (1, T)
    labels = torch.tensor([text.labels], device=device)  # (1, T)
    shuffle, margin, side = config.compressor.shuffle, config.stitched_margin, config.vision.side

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            features = tower(pixels).last_hidden_state.unflatten(1, (side, side))
        core = features[:, margin : side - margin, margin : side - margin]  # (S, core, core, D)
        core = core.unflatten(2, (-1, shuffle)).unflatten(1, (-1, shuffle))
        tokens = compressor(core.transpose(2, 3).flatten(3).flatten(1, 2))  # (S, tokens, D)
        embeddings = decoder.get_input_embeddings()(ids.clamp(min=0))  # (1, T, D)
        embeddings = embeddings.masked_scatter((ids < 0)[..., None], tokens.flatten(0, 1))
        loss = decoder(inputs_embeds=embeddings, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learned, MAX_GRADIENT)
        optimizer.step()
        return loss.item()

    return run


STEPS = {"flashvl": our_step, "transformers": their_step}


def import_peft() -> Any:
    """Raises `FlashVLError` if one of the libraries is not installed."""
    import_transformers()
    try:
        import peft
    except ImportError as error:
        raise FlashVLError(
            "this compares with the library peft, which is not installed; "
            'run: pip install "flashvl[test]"'
        ) from error
    return peft


def compare_training(folder: Path, sizes: Sizes, runs: int, device: torch.device) -> dict[str, Any]:
    """Way of learning -> both sides' times of a step, tokens a second and peaks, their ratios."""
    text = sample(folder, sizes)
    result: dict[str, Any] = {"tokens": len(text.ids), "answer_tokens": sizes.new}
    for way in WAYS:
        peaks = {side: measure_peak(folder, way, side, sizes, device) for side in STEPS}
        steps = {side: build(folder, way, text, device) for side, build in STEPS.items()}
        times = compare(f"a step, {way}", steps, runs, device)
        for side in STEPS:
            times[side]["tokens_per_second"] = len(text.ids) / times[side]["seconds"]
            times[side]["peak_bytes"] = peaks[side]
        result[way] = times | {"memory_ratio": peaks["flashvl"] / peaks["transformers"]}
    return result


def measure_peak(folder: Path, way: str, side: str, sizes: Sizes, device: torch.device) -> int:
    """The bytes of two steps, above what the process had before, in a process of its own."""
    show_progress(f"memory: {side} learns in a process of its own", 0)
    settings = json.dumps([str(folder), way, side, asdict(sizes), str(device)])
    command = [sys.executable, "-m", "flashvl.tools.bench.training", settings]
    done = subprocess.run(command, capture_output=True, text=True)
    end_progress()
    if done.returncode < 0:
        raise DeviceError(f"the process in which {side} learns was ended, likely memory ran out")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise FlashVLError(f"measuring the memory of {side} failed: {reason}")
    return int(done.stdout.splitlines()[-1])


def as_text(result: dict[str, Any]) -> str:
    rows = [("a step", "side", "seconds", "tokens/s", "peak bytes", "of transformers")]
    for way in WAYS:
        for side in STEPS:
            one = result[way][side]
            ours = side == "flashvl"
            ratios = (
                f"{result[way]['ratio']:.2f} x time, {result[way]['memory_ratio']:.2f} x memory"
            )
            rows.append(
                (
                    *(way, side, f"{one['seconds']:.3f}", f"{one['tokens_per_second']:.1f}"),
                    *(f"{one['peak_bytes']:,}", ratios if ours else ""),
                )
            )
    tokens = f"{result['tokens']} tokens, {result['answer_tokens']} of them the answer's"
    return f"{tokens}; float32\n{table(rows)}"


def main() -> int:
    """What the other process does -> its exit code."""
    folder, way, side, numbers, name = json.loads(sys.argv[1])
    try:
        device = choose_device(name)
        text = sample(Path(folder), Sizes(**numbers))
        if side == "transformers":
            import_peft()
        before = peak_bytes(device)
        with device_failure_as_error("learning"):
            step = STEPS[side](Path(folder), way, text, device)
            step()
            step()
    except FlashVLError as error:
        print(error, file=sys.stderr)
        return 2
    print(peak_bytes(device) - before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
