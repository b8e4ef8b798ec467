"""What `flashvl bench` must know of the device: its name, its clock and its memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..cpu import has_bfloat16_arithmetic


def describe(device: torch.device) -> dict[str, Any]:
    """The device's exact name and what decides its speed, as JSON can hold it."""
    about: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        about |= {
            "name": torch.cuda.get_device_name(device),
            "memory": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
        }
    elif device.type == "cpu":
        about |= {
            "name": cpu_name(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
    else:
        about["name"] = device.type
    return about | {"bfloat16_arithmetic": multiplies_bfloat16(device)}


def cpu_name() -> str:
    """As the system tells it; Python itself knows it on few systems."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 run in the device's own instructions."""
    return device.type != "cpu" or has_bfloat16_arithmetic()


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was asked for."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: tensors on a CUDA device, elsewhere the process with mapped files."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where `getrusage` counts what the process that started it had
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
