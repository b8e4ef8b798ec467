"""The model of the explorer's page, run by node."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashvl import FlashVL
from flashvl.tools.explore import joined, page_data, weights_of

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(
    NODE is None, reason="the page's model is not tested: there is no node on this machine"
)
HARNESS = (Path(__file__).parent / "harness.js").read_text(encoding="utf-8")


def run_in_node(folder: Path, task: str, flash: FlashVL | None = None, **values: Any) -> Any:
    """What `tasks[task]` of harness.js returns. Arrays go in and come out as `packed` ones."""
    model = None
    if flash is not None:
        model = {
            **page_data(flash),
            "weights": base64.b64encode(weights_of(flash)).decode("ascii"),
        }
    given, script = folder / "given.json", folder / "script.js"
    given.write_text(json.dumps({"task": task, "model": model, **values}), encoding="utf-8")
    parts = joined("model/worker.js", "page/words.js", "page/places.js")
    script.write_text(f"{parts}\n{HARNESS}", encoding="utf-8")
    done = subprocess.run(
        [NODE, str(script), str(given)], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def picture_of(image) -> dict[str, Any]:
    """A PIL image as the page has it."""
    return {
        "height": image.height,
        "width": image.width,
        "rgb": base64.b64encode(image.convert("RGB").tobytes()).decode("ascii"),
    }


def bytes_of(picture: dict[str, Any]) -> np.ndarray:
    """A picture out of the page -> (height, width, 3) uint8."""
    rgb = np.frombuffer(base64.b64decode(picture["rgb"]), np.uint8)
    return rgb.reshape(picture["height"], picture["width"], 3)


def tensor_of(packed: dict[str, Any]) -> np.ndarray:
    """A tensor out of the page -> float32 of its shape."""
    return np.frombuffer(base64.b64decode(packed["data"]), np.float32).reshape(packed["shape"])
