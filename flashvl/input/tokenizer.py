"""The tokenizer of a checkpoint folder, in which text is never read as a control token.

Source: Qwen2.5's byte-level BPE. Two forms of files are published: `tokenizer.json`, or
`vocab.json` + `merges.txt` + `added_tokens.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError
from ..reading import one_line, read_json

# How Qwen2 cuts text before the merges. Source: published tokenizer.json.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text and token ids. Raises `CheckpointError` if `definition` is not a tokenizer.

    `definition` is the content of a tokenizer.json. `control` maps each added token, such as
    `<|im_end|>`, to its id; `encode` never gives those ids, whatever the text says.
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        try:
            if definition["model"].get("continuing_subword_prefix"):
                raise ValueError("not a byte-level BPE")  # the library would end the process
            added = definition.get("added_tokens") or []
            self.control = {token["content"]: token["id"] for token in added}
            self._hidden = {token["id"] for token in added if token["special"]}
            # All added tokens count as special here, so that one switch keeps text from them.
            definition = definition | {
                "added_tokens": [token | {"special": True} for token in added]
            }
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"the tokenizer files are damaged: {one_line(error)}") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads either form of files. Raises `CheckpointError`."""
        if (folder / "tokenizer.json").exists():
            return cls(read_json(folder / "tokenizer.json", CheckpointError))
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            try:
                return cls(_definition_from_parts(folder))
            except (AttributeError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{folder} has a damaged added_tokens.json or tokenizer_config.json"
                ) from error
        raise CheckpointError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt"
        )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without the special control tokens; broken characters become U+FFFD."""
        shown = [token for token in ids if token not in self._hidden]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def control_id(self, token: str) -> int:
        """The id of a control token. Raises `CheckpointError` if the vocabulary lacks it."""
        if token not in self.control:
            raise CheckpointError(f"the tokenizer has no control token {token}")
        return self.control[token]

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        ids = [*self._tokenizer.get_vocab().values(), *self.control.values()]
        return max(ids, default=-1) + 1

    def save(self, file: Path) -> None:
        definition = json.loads(self._tokenizer.to_str())
        for token in definition["added_tokens"]:
            token["special"] = token["id"] in self._hidden
        file.write_text(json.dumps(definition, ensure_ascii=False, indent=1), encoding="utf-8")


def _definition_from_parts(folder: Path) -> dict[str, Any]:
    """The same tokenizer.json that the published one is, out of the older files."""
    vocabulary = read_json(folder / "vocab.json", CheckpointError)
    lines = _read_text(folder / "merges.txt").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    added_file = folder / "added_tokens.json"
    added = read_json(added_file, CheckpointError) if added_file.exists() else {}
    special = _special_tokens(folder)
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": content in special or not special,
            }
            for content, token_id in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split"} | split, {"type": "ByteLevel"} | byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"} | byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _special_tokens(folder: Path) -> set[str]:
    """Contents that tokenizer_config.json marks special; empty if there is no such list."""
    file = folder / "tokenizer_config.json"
    listed = (
        read_json(file, CheckpointError).get("added_tokens_decoder", {}) if file.exists() else {}
    )
    return {token["content"] for token in listed.values() if token.get("special")}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
