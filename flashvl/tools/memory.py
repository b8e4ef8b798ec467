"""Measures that loading holds no second copy of the weights.

Run as `python -m flashvl.tools.memory [FOLDER] [--dtype float32]`; without a folder a random
checkpoint of the real 2B sizes (5 GB) is written to a temporary folder and removed again. Ends
with one JSON line; exit code 1 if the peak is above 1.15 times the tensors.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..device import DTYPES
from ..model import FlashVL

MOST = 1.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    options = parser.parse_args()
    if options.folder is not None:
        return measure(options.folder, options.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "random"
        # In another process, whose memory does not count here.
        writer = [sys.executable, "-m", "flashvl.tools.random_checkpoint", str(folder)]
        subprocess.run(writer, check=True)
        return measure(folder, options.dtype)


def measure(folder: Path, dtype: str) -> int:
    """Loads `folder` on the CPU, reads every weight once, prints what it took."""
    before, start = _peak_bytes(), time.perf_counter()
    model = FlashVL.from_pretrained(folder, "cpu", dtype)
    seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.detach().sum()
    tensors = sum(parameter.nbytes for parameter in model.parameters())
    peak = _peak_bytes() - before
    print(f"tensors {tensors:,} bytes, peak {peak:,} bytes above the start, in {seconds:.1f} s")
    result = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "tensor_bytes": tensors,
        "peak_bytes": peak,
        "ratio": round(peak / tensors, 3),
        "most": MOST,
        "seconds": round(seconds, 2),
    }
    print(json.dumps(result))
    return int(peak > MOST * tensors)


def _peak_bytes() -> int:
    """The most memory that this process has had, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
