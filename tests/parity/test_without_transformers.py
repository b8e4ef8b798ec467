"""Importing and running flashvl needs nothing of what the tests need."""

from __future__ import annotations

import subprocess
import sys

from checkpoints import make_checkpoint
from photographs import photograph

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "tiktoken", "skimage"}:
            raise AssertionError(f"flashvl imports {name}")

sys.meta_path.insert(0, Refuse())
import flashvl
import flashvl.cli

flash = flashvl.FlashVL.from_pretrained(sys.argv[1], device="cpu")
messages = [{"role": "user", "content": "What is this?"}]
answer = flash.chat(sys.argv[2], messages, max_new_tokens=4)
flash.save_pretrained(sys.argv[3])
assert "transformers" not in sys.modules and "tiktoken" not in sys.modules
print("answered")
"""


def test_chat_never_imports_transformers(tmp_path):
    make_checkpoint(tmp_path / "model")
    photograph("text.png").save(tmp_path / "text.png")
    arguments = [tmp_path / "model", tmp_path / "text.png", tmp_path / "again"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "answered\n"
