"""The tokenizer of a checkpoint folder, in which text is never read as a control token.

Source: Qwen2.5's byte-level BPE. Two forms of files are published: `tokenizer.json`, or
`vocab.json` + `merges.txt` + `added_tokens.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, ConfigError, FlashVLError, MessageError
from ..reading import MAX_TEXT_BYTES, Reader, is_integer, one_line, read_json, shown
from ..storage import is_there, read_bounded, replace

MAX_TOKENS = 1_000_000  # of a vocabulary, and merges; Qwen2.5 has 151,643 and 151,387
MAX_ADDED_TOKENS = 10_000

# How Qwen2 cuts text before the merges. Source: published tokenizer.json.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLIT = {
    "type": "Split",
    "pattern": {"Regex": QWEN2_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}
NFC = {"type": "NFC"}
BYTE_LEVEL = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
# What transformers writes for a post-processor that adds no token.
PLAIN_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Tokenizer:
    """Text and token ids. Raises `CheckpointError` if `definition` is not a tokenizer like Qwen's.

    `definition` is the content of a tokenizer.json: byte-level BPE without dropout, of at most
    `MAX_TOKENS` tokens and as many merges. What else the library could build is refused by name,
    for some of it raises in ways of its own, takes for ever, or ends the process. `control` maps
    each added token, such as `<|im_end|>`, to its id; `encode` never gives those ids, whatever the
    text says.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        added = _read_definition(definition)
        self.control = {token["content"]: token["id"] for token in added}
        self._hidden = {token["id"] for token in added if token["special"]}
        sections = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
        with _failure_as(CheckpointError, "the tokenizer files are damaged"):
            # All added tokens count as special here, so that one switch keeps text from them.
            self._tokenizer = tokenizers.Tokenizer.from_str(
                json.dumps(
                    {"version": "1.0", "truncation": None, "padding": None}
                    | {"added_tokens": [token | {"special": True} for token in added]}
                    | {section: definition.get(section) for section in sections}
                )
            )
        self._tokenizer.encode_special_tokens = True
        for content, token_id in self.control.items():
            if (known := self._tokenizer.token_to_id(content)) != token_id:
                raise CheckpointError(
                    f"the added token {shown(content)} has the id {token_id}, but {known} is the "
                    "next one; the tokenizer's ids must have no gaps"
                )

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Reads either form of files. Raises `CheckpointError`."""
        if is_there(folder / "tokenizer.json"):
            return cls(read_json(folder / "tokenizer.json", CheckpointError))
        if is_there(folder / "vocab.json") and is_there(folder / "merges.txt"):
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
        """Ids of ordinary tokens. Raises `MessageError` if the library gives up on the text."""
        with _failure_as(MessageError, "the text cannot be cut into tokens"):
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

    def definition(self) -> dict[str, Any]:
        """The content of a tokenizer.json that gives this tokenizer again."""
        definition = json.loads(self._tokenizer.to_str())
        for token in definition["added_tokens"]:
            token["special"] = token["id"] in self._hidden
        return definition

    def save(self, file: Path) -> None:
        """Writes a tokenizer.json. Raises `OSError`."""
        contents = json.dumps(self.definition(), ensure_ascii=False, indent=1)
        replace(file, contents.encode("utf-8"))


def _read_definition(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its added tokens, by id. Raises `CheckpointError` unless all of it is as Qwen2.5's."""
    try:
        whole = Reader(definition, "the tokenizer")
        _check_steps(whole.values)
        ids = _check_model(whole.section("model"))
        return _read_added(whole, ids)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_steps(definition: Mapping[str, Any]) -> None:
    """What is done to a text before and after the model. Raises `ConfigError`."""
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "normalizer": (lambda step: step in (None, NFC), "NFC or none"),
        "pre_tokenizer": (_cuts_as_qwen2, "Split by Qwen2's pattern and ByteLevel, or ByteLevel"),
        "post_processor": (
            lambda step: step in (None, PLAIN_TEMPLATE) or _is_byte_level(step),
            "ByteLevel or none",
        ),
        "decoder": (_is_byte_level, "ByteLevel"),
    }
    for name, (fits, wanted) in checks.items():
        if not fits(definition.get(name)):
            raise ConfigError(
                f'"{name}" of the tokenizer must be {wanted}, found {shown(definition.get(name))}'
            )


def _cuts_as_qwen2(step: Any) -> bool:
    if isinstance(step, Mapping) and step.get("type") == "Sequence":
        match step.get("pretokenizers"):
            case [first, last] if first == SPLIT:
                step = last
            case _:
                return False
    return _is_byte_level(step, add_prefix_space=False, use_regex=False)


def _is_byte_level(value: Any, **flags: bool) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("type") == "ByteLevel"
        and value.keys() <= {"type", *BYTE_LEVEL}
        and all(isinstance(value.get(flag, False), bool) for flag in BYTE_LEVEL)
        and all(value.get(flag) is wanted for flag, wanted in flags.items())
    )


def _check_model(model: Reader) -> set[int]:
    """The ids of the byte-level BPE's vocabulary. Raises `ConfigError`."""
    why = "only byte-level BPE as Qwen2.5's is built"
    model.must_be("type", "BPE", why)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        model.must_be(name, "", why)
    for name in ("dropout", "unk_token"):
        model.must_be(name, None, why)
    for name in ("fuse_unk", "byte_fallback", "ignore_merges"):
        model.must_be(name, False, why)
    vocabulary, merges = model.section("vocab").values, model.values.get("merges")
    if not isinstance(merges, list) or max(len(merges), len(vocabulary)) > MAX_TOKENS:
        raise ConfigError(f"the tokenizer must have lists of at most {MAX_TOKENS:,} tokens, merges")
    ids = set(filter(is_integer, vocabulary.values()))
    if ids != set(range(len(vocabulary))):  # for a gap the library would take memory
        raise ConfigError(
            f"the tokenizer's ids must be the numbers from 0 to {len(vocabulary) - 1}, one for "
            "each token"
        )
    missing = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
    if missing:
        raise ConfigError(
            f"the tokenizer lacks {len(missing)} of the 256 bytes, such as {shown(min(missing))}"
        )
    return ids


def _read_added(whole: Reader, ids: set[int]) -> list[dict[str, Any]]:
    """Raises `ConfigError`, also if a text could give an added token's id, one of `ids`."""
    listed = whole.values.get("added_tokens") or []
    if not isinstance(listed, list) or len(listed) > MAX_ADDED_TOKENS:
        raise ConfigError(
            f'"added_tokens" of the tokenizer must be a list of at most {MAX_ADDED_TOKENS:,}'
        )
    added: dict[int, dict[str, Any]] = {}
    contents = set()
    for number, values in enumerate(listed, 1):
        token = Reader(values, f"added token {number}")
        content, token_id = token.text("content", ""), token.integer("id", minimum=0)
        if token_id in ids or token_id in added or content in contents or not content:
            raise ConfigError(
                f"the added token {shown(content)} of id {token_id} must have a text and an id "
                "that no other token has"
            )
        contents.add(content)
        flags = {name: token.boolean(name, False) for name in ADDED_TOKEN_FLAGS}
        added[token_id] = {"id": token_id, "content": content} | flags
    return [added[token_id] for token_id in sorted(added)]


@contextmanager
def _failure_as(error: type[FlashVLError], what: str) -> Iterator[None]:
    """The library raises `Exception` itself, and for a panic a `BaseException` of its own."""
    try:
        yield
    except BaseException as cause:
        if isinstance(cause, Exception) or type(cause).__name__ == "PanicException":
            raise error(f"{what}: {one_line(cause)}") from cause
        raise


def _definition_from_parts(folder: Path) -> dict[str, Any]:
    """The same tokenizer.json that the published one is, out of the older files."""
    vocabulary = read_json(folder / "vocab.json", CheckpointError)
    lines = _read_text(folder / "merges.txt").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    added = {}
    if is_there(folder / "added_tokens.json"):
        added = read_json(folder / "added_tokens.json", CheckpointError)
    special = _special_tokens(folder)
    byte_level = {"type": "ByteLevel"} | BYTE_LEVEL
    return {
        "added_tokens": [
            {"id": token_id, "content": content, "special": content in special or not special}
            for content, token_id in added.items()
        ],
        "normalizer": NFC,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _special_tokens(folder: Path) -> set[str]:
    """Contents that tokenizer_config.json marks special; empty if there is no such list."""
    listed: Mapping[str, Any] = {}
    if is_there(folder / "tokenizer_config.json"):
        config = read_json(folder / "tokenizer_config.json", CheckpointError)
        listed = config.get("added_tokens_decoder", {})
    return {token["content"] for token in listed.values() if token.get("special")}


def _read_text(file: Path) -> str:
    try:
        return read_bounded(file, MAX_TEXT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error)}") from error
