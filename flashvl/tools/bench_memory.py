"""The memory that loading and one run of every stage takes, in a process of its own.

`flashvl bench` starts `python -m flashvl.tools.bench_memory` with its settings as JSON and reads
its last line: what the process had before the weights, and the peak after each step, in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ..checkpoint import read_config, read_headers
from ..device import choose_device
from ..errors import DeviceError, FlashVLError, device_failure_as_error
from ..model import FlashVL
from .bench_device import peak_bytes
from .bench_peer import PeerDecoder, run_tower
from .bench_stages import STAGES, Sizes, Stages, input_shapes
from .bench_timing import end_progress, show_progress
from .transformers_modules import (
    Published,
    build_compressor,
    build_decoder,
    build_tower,
    import_transformers,
)


def measure_memory(
    folder: Path, sizes: Sizes, device: str, dtype: str, peer: bool = False
) -> dict[str, int]:
    """ "before" the weights, and the peak after "load" and each stage, all in bytes.

    With `peer` transformers' modules in float32 are measured. Raises a `FlashVLError` with what
    the other process says.
    """
    whose = "transformers in float32" if peer else "flashvl"
    show_progress(f"memory: {whose} answers in a process of its own", 0)
    settings = [str(folder), vars(sizes), device, dtype, peer]
    command = [sys.executable, "-m", "flashvl.tools.bench_memory", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    end_progress()
    if done.returncode < 0:
        raise DeviceError(
            f"the process that measures the memory of {whose} was ended, likely for want of memory"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise FlashVLError(f"measuring the memory of {whose} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def run_ours(folder: Path, sizes: Sizes, device: str, dtype: str) -> Iterator[str]:
    """Yields the name of each step after it."""
    model = FlashVL.from_pretrained(folder, device, dtype)
    yield "load"
    stages = Stages(model, sizes)
    for name in STAGES:
        stages.stage(name)()
        yield name


@torch.inference_mode()
def run_peer(folder: Path, sizes: Sizes, device: str) -> Iterator[str]:
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
    embeddings = torch.randn(1, sizes.prompt, config.decoder.width, device=device)  # (1, T, D)
    peer = PeerDecoder(decoder, embeddings, sizes.new)
    peer.prefill()
    yield "prefill"
    peer.decode()
    yield "decode"


def main() -> int:
    folder, sizes, device, dtype, peer = json.loads(sys.argv[1])
    sizes = Sizes(**sizes)
    try:
        place = choose_device(device)
        if peer:
            import_transformers()
            steps = run_peer(Path(folder), sizes, str(place))
        else:
            steps = run_ours(Path(folder), sizes, device, dtype)
        peaks = {"before": peak_bytes(place)}
        with device_failure_as_error("measuring"):
            peaks |= {name: peak_bytes(place) for name in steps}
    except FlashVLError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
