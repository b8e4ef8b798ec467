"""`flashvl explore`: one HTML page in which a whole model lives, and every step of it can be seen.

The page needs nothing else: no server, no network. Its parts lie in the folder `explorer/`: in
`model/` a file in JavaScript for each of the model's files in Python, in `page/` what is seen.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import posixpath
import re
import webbrowser
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save

from ..chat import FlashVL
from ..checkpoint.files import read_headers
from ..checkpoint.hub import find_model, is_repository
from ..errors import ArgumentError
from ..input.image import ImageLike, load_image
from ..reading import shown
from ..storage import MEBIBYTE, read_bounded
from ..terminal import say
from .new_file import check_new, write_new

FOLDER = Path(__file__).parent / "explorer"
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"  # in a clone
TOWERS = ("aimv2", "siglip")  # that the page has in JavaScript
NEVER_CALLED = "vision.pooling_head."

MAX_PARAMETERS = 8_000_000  # nano has 1.7 million; a browser needs a second for them
MAX_SIDE = 1024  # pixels of a picture that is put into the page
MAX_PAGE = 64 * MEBIBYTE
DIGITS, DIGIT_SIZE = "0123456789", 96  # of the font, in pixels

_IMPORT = re.compile(r'^import \{([^}]*)\} from "([./\w]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)


def run(options: argparse.Namespace) -> None:
    """Writes the page and opens it. Raises `ArgumentError`, `CheckpointError`, `ImageError`."""
    folder = _small_model(options.model)
    image = None if options.image is None else load_image(options.image)
    flash = FlashVL.from_pretrained(
        folder, device="cpu", dtype="float32", assumptions=options.assumptions
    )
    contents = page(flash, folder.resolve().name, image, options.question, _notebooks(options.out))
    if not _is_there_already(options.out, contents):
        check_new(options.out, "--out")
        write_new(options.out, "--out", contents)
    print(options.out)
    if not options.no_open and not webbrowser.open(options.out.resolve().as_uri()):
        say("flashvl: no browser was found here; open the page in one of yours")


def page(
    flash: FlashVL,
    name: str,
    image: ImageLike | None = None,
    question: str | None = None,
    notebooks: str | None = None,
) -> bytes:
    """The whole page. `notebooks` is where their folder lies as seen from it, if it does.

    Raises `ArgumentError` for a model whose tower the page does not have.
    """
    config = flash.config
    if config.vision.architecture not in TOWERS:
        raise ArgumentError(
            f"the page has the towers {' and '.join(TOWERS)}, not {config.vision.architecture}"
        )
    data = {
        **page_data(flash),
        "name": name,
        "parameters": sum(one.numel() for one in flash.model.parameters()),
        "question": question,
        "image": None if image is None else _png(_shown(load_image(image))),
        "digits": _png(_digits()),
        "digitSize": DIGIT_SIZE,
        "notebooks": notebooks,
    }
    style, script = _read("page/page.css"), joined("page/page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "worker-src blob:; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "data": json.dumps(data).replace("<", "\\u003c"),
        "worker": joined("model/worker.js"),
        "weights": base64.b64encode(weights_of(flash)).decode("ascii"),
        "script": script,
    }
    document = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _read("page/page.html"))
    return document.encode("utf-8")


def page_data(flash: FlashVL) -> dict[str, Any]:
    """What the page's model is built from besides the weights."""
    config = dataclasses.asdict(dataclasses.replace(flash.config, source={}))
    config["tiler"]["height_first"] = resizes_height_first()
    parts = ("vision", "compressor", "decoder", "tiler", "prompt")
    return {
        "config": {part: config[part] for part in parts},
        "tokenizer": flash.tokenizer.definition(),
        "stopIds": sorted(flash.stop_ids),
    }


def resizes_height_first() -> bool:
    """Whether this version of Pillow ever does; where it counts, bytes differ by the order."""
    dots = Image.frombytes("L", (16, 16), bytes(37 * place**2 % 256 for place in range(256)))
    return dots.resize((32, 8)).tobytes() != dots.resize((32, 16)).resize((32, 8)).tobytes()


def joined(*entries: str) -> str:
    """Modules of `explorer/` and all that they import, as one script.

    Each becomes a function that is called once, so that its names stay its own.
    """
    order: list[str] = []

    def visit(module: str) -> None:
        for _, imported in _IMPORT.findall(_read(module)):
            if _beside(module, imported) not in order:
                visit(_beside(module, imported))
        order.append(module)

    for entry in entries:
        if entry not in order:
            visit(entry)
    parts = ['"use strict";', "const modules = {};"]
    for module in order:
        parts.append(f'modules["{module}"] = (() => {{\n{_as_function(module)}}})();')
    return "\n".join(parts)


def _as_function(module: str) -> str:
    """The code of a module as the body of a function that returns what the module exports."""

    def take(found: re.Match[str]) -> str:
        return f'const {{{found[1]}}} = modules["{_beside(module, found[2])}"];\n'

    code = _read(module)
    names = ", ".join(_EXPORT.findall(code))
    return f"{_EXPORT.sub('', _IMPORT.sub(take, code))}return {{ {names} }};\n"


def _beside(module: str, imported: str) -> str:
    """What a module imports, as seen from `explorer/`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(module), imported))


def weights_of(flash: FlashVL) -> bytes:
    """A safetensors file by the names of our modules: bfloat16 where that loses nothing."""
    tensors = {}
    for name, tensor in flash.model.state_dict().items():
        tied = name == "decoder.head.weight" and flash.config.decoder.tied_head
        if tied or name.startswith(NEVER_CALLED):
            continue
        wide = tensor.float()
        narrow = wide.bfloat16()
        tensors[name] = (narrow if torch.equal(narrow.float(), wide) else wide).contiguous()
    return save(tensors)


def _small_model(name: str) -> Path:
    """Its folder. Raises `ArgumentError` if it is too large for a page, before it is loaded."""
    if not Path(name).is_dir() and name != "nano" and is_repository(name):
        raise ArgumentError(
            f"{shown(name)} is a repository; a page holds nano or a folder with a model of its size"
        )
    folder = find_model(name)
    parameters = sum(math.prod(header.shape) for header in read_headers(folder).values())
    if parameters > MAX_PARAMETERS:
        raise ArgumentError(
            f"{folder} has {parameters:,} parameters; a page holds at most {MAX_PARAMETERS:,}"
        )
    return folder


def _is_there_already(file: Path, contents: bytes) -> bool:
    """Whether the same page was written before."""
    try:
        return read_bounded(file, MAX_PAGE) == contents
    except (OSError, ValueError):
        return False


def _notebooks(out: Path) -> str | None:
    """Their folder as seen from a page in the same clone, to which the page can link."""
    folder = Path(os.path.abspath(out)).parent
    if NOTEBOOKS.is_dir() and folder.is_relative_to(NOTEBOOKS.parent):
        return Path(os.path.relpath(NOTEBOOKS, folder)).as_posix()
    return None


def _shown(image: Image.Image) -> Image.Image:
    """A picture of at most `MAX_SIDE` pixels a side."""
    smaller = image.copy()
    smaller.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return smaller


def _digits() -> Image.Image:
    """The ten digits of the font of nano's pictures side by side, white on black, equally wide."""
    font = ImageFont.load_default(DIGIT_SIZE)
    _, top, _, bottom = font.getbbox(DIGITS)
    strip = Image.new("L", (round(font.getlength(DIGITS)), round(bottom - top)))
    ImageDraw.Draw(strip).text((0, -top), DIGITS, fill=255, font=font)
    return strip


def _png(image: Image.Image) -> str:
    contents = io.BytesIO()
    image.save(contents, "PNG", optimize=True)
    return base64.b64encode(contents.getvalue()).decode("ascii")


def _hash(text: str) -> str:
    """What a Content-Security-Policy allows this one script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
