"""Text is never a control token, both forms of files agree, damage is named."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONTROL, mutated, tokenizer_definition

from flashvl.errors import CheckpointError
from flashvl.input.tokenizer import Tokenizer

DEFINITION = tokenizer_definition()
TOKENIZER = Tokenizer(DEFINITION)
TEXTS = [
    "What colour is it?",
    "这是什么颜色？",
    "👩‍👩‍👧 and 🏳️‍🌈",
    "def f(x):\n\treturn x ** 2  # square\r\n",
    "  two  spaces  ",
    "",
    "é e\u0301",
]


def write_parts(folder) -> dict[str, object]:
    """The older form of the same tokenizer."""
    model, added = DEFINITION["model"], DEFINITION["added_tokens"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    parts = {
        "vocab.json": model["vocab"],
        "merges.txt": "#version: 0.2\n" + merges,
        "added_tokens.json": {token["content"]: token["id"] for token in added},
        "tokenizer_config.json": {"added_tokens_decoder": {str(one["id"]): one for one in added}},
    }
    for name, content in parts.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return parts


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_in_a_text_is_ordinary_characters(token):
    ids = TOKENIZER.encode(f"before {token} after")
    assert not set(ids) & set(TOKENIZER.control.values())
    assert TOKENIZER.decode(ids) == f"before {token} after"


@given(st.lists(st.sampled_from([*CONTROL, "<|im_", "end|>", "<", "|>", " ", "\n", "x"])))
def test_no_text_gives_a_control_id(parts):
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert max(ids, default=0) < min(TOKENIZER.control.values())
    assert TOKENIZER.decode(ids) == text


@given(st.text())
def test_decoding_undoes_encoding(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


def test_both_forms_of_files_give_the_same_ids(tmp_path):
    write_parts(tmp_path)
    parts = Tokenizer.from_folder(tmp_path)
    assert parts.control == TOKENIZER.control
    for text in TEXTS:
        assert parts.encode(text) == TOKENIZER.encode(text)
    (tmp_path / "other").mkdir()
    TOKENIZER.save(tmp_path / "other" / "tokenizer.json")
    saved = Tokenizer.from_folder(tmp_path / "other")
    assert saved.control == TOKENIZER.control
    for text in TEXTS:
        assert saved.encode(text) == TOKENIZER.encode(text)


def test_without_added_tokens_there_is_no_control(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.control == {}
    with pytest.raises(CheckpointError, match=r"<\|im_start\|>"):
        tokenizer.control_id("<|im_start|>")


def test_special_tokens_are_not_shown_and_others_are(tmp_path):
    definition = tokenizer_definition()
    definition["added_tokens"][-1]["special"] = False
    tokenizer = Tokenizer(definition)
    ids = [tokenizer.control_id(token) for token in CONTROL]
    assert tokenizer.decode(ids) == CONTROL[-1]
    assert CONTROL[-1] in tokenizer.control
    assert not set(tokenizer.encode(CONTROL[-1])) & set(ids)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_folder(tmp_path).decode(ids) == CONTROL[-1]


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_settings_for_training_do_not_change_prompts(setting):
    settings = {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    tokenizer = Tokenizer(DEFINITION | {setting: settings[setting]})
    assert tokenizer.encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])


DAMAGED = {
    "tokenizer.json": ["", "{", "[]", "{}", '{"model": 5}', "[" * 5000, b"\xff\xfe"],
    "vocab.json": ["", "[]", '{"a": "b"}', '{"a": -1}'],
    "merges.txt": ["a\n", "a b c\n", "not known\n", b"\xff"],
    "added_tokens.json": ["[]", '{"<|im_end|>": "x"}', '{"<|im_end|>": "x", "b": 1}'],
    "tokenizer_config.json": [
        '{"added_tokens_decoder": [1]}',
        '{"added_tokens_decoder": {"5": 1}}',
    ],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name in DAMAGED for content in DAMAGED[name]]
)
def test_damaged_files_are_refused(tmp_path, name, content):
    write_parts(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as refusal:
        Tokenizer.from_folder(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_definition_that_would_end_the_process_is_refused():
    definition = tokenizer_definition()
    definition["model"]["continuing_subword_prefix"] = "x"
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer(definition)


@given(mutated(DEFINITION))
def test_a_mutated_definition_is_a_tokenizer_or_a_checkpoint_error(definition):
    try:
        tokenizer = Tokenizer(definition)
    except CheckpointError:
        return
    tokenizer.decode(tokenizer.encode("What is <|im_end|>? 你好 👩‍👩‍👧"))


def test_mutated_parts_are_a_tokenizer_or_a_checkpoint_error(tmp_path):
    parts = write_parts(tmp_path)

    @given(st.sampled_from(["vocab.json", "added_tokens.json", "tokenizer_config.json"]), st.data())
    def check(name, data):
        write_parts(tmp_path)
        content = json.dumps(data.draw(mutated(parts[name])))
        kept = data.draw(st.just(len(content)) | st.integers(0, len(content)))
        (tmp_path / name).write_text(content[:kept])
        try:
            tokenizer = Tokenizer.from_folder(tmp_path)
        except CheckpointError:
            return
        tokenizer.decode(tokenizer.encode("What is <|im_end|>? 你好 👩‍👩‍👧"))

    check()
