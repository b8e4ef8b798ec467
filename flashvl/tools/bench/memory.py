"""The memory that loading and one run of every stage takes, in a process of its own.

`flashvl bench` starts `python -m flashvl.tools.bench.memory` with its settings as JSON and reads
its last line: what the process had before the weights, and the peak after each step, in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from ...chat import FlashVL
from ...checkpoint.files import read_headers
from ...checkpoint.published import read_config
from ...device import choose_device, device_failure_as_error, peak_bytes
from ...errors import DeviceError, FlashVLError
from ...terminal import end_progress, show_progress
from ..transformers_modules import (
    Published,
    build_compressor,
    build_decoder,
    build_tower,
    import_transformers,
)
from .peers import PeerDecoder, run_tower
from .stages import Sizes, Stages, input_shapes


def measure_memory(
    folder: Path, sizes: Sizes, device: torch.device, dtype: str, peer: bool = False
) -> dict[str, int]:
    """ "before" the weights, and the peak after "load" and each stage, all in bytes.

    With `peer` transformers' modules in float32 are measured. Raises a `FlashVLError` with what
    the other process says.
    """
    whose = "transformers in float32" if peer else "flashvl"
    show_progress(f"memory: {whose} answers in a process of its own", 0)
    settings = json.dumps([str(folder), asdict(sizes), str(device), dtype, peer])
    command = [sys.executable, "-m", "flashvl.tools.bench.memory", settings]
    done = subprocess.run(command, capture_output=True, text=True)
    end_progress()
    if done.returncode < 0:
        raise DeviceError(
            f"the process that measures the memory of {whose} was ended, likely because memory "
            "ran out"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise FlashVLError(f"measuring the memory of {whose} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def run_ours(folder: Path, sizes: Sizes, device: torch.device, dtype: str) -> Iterator[str]:
    """Yields the name of each step after it."""
    flash = FlashVL.from_pretrained(folder, device, dtype)
    yield "load"
    for name, stage in Stages(flash, sizes).by_name.items():
        stage()
        yield name


@torch.inference_mode()
def run_peer(folder: Path, sizes: Sizes, device: torch.device) -> Iterator[str]:
    """The same with transformers' tower and decoder and the plain compressor, all in float32."""
    config, published = read_config(folder, read_headers(folder)), Published(folder)
    pixels = torch.randn(input_shapes(config, sizes.tiles)[0], device=device)  # (S, C, h, w)
    tower = build_tower(published, config.vision, pixels.shape[-1]).to(device)
    compressor = build_compressor(published).to(device)
    decoder = build_decoder(published).to(device)
    yield "load"
    run_tower(tower, pixels)
    yield "vision"
    tokens = sizes.tiles * config.tokens_per_tile
    compressor(torch.randn(1, tokens, config.compressor_input_width, device=device))
    yield "compressor"
    ids = torch.zeros(1, sizes.prompt, dtype=torch.long, device=device)  # (1, T)
    peer = PeerDecoder(decoder, ids, sizes.new)
    peer.prefill()
    yield "prefill"
    peer.decode()
    yield "decode"


def main() -> int:
    """What the other process does -> its exit code."""
    folder, numbers, name, dtype, peer = json.loads(sys.argv[1])
    sizes = Sizes(**numbers)
    try:
        device = choose_device(name)
        if peer:
            import_transformers()
            steps = run_peer(Path(folder), sizes, device)
        else:
            steps = run_ours(Path(folder), sizes, device, dtype)
        peaks = {"before": peak_bytes(device)}
        with device_failure_as_error("measuring"):
            peaks |= {step: peak_bytes(device) for step in steps}
    except FlashVLError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
