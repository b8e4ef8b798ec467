"""Text is never a control token, both forms of files agree, damage is named."""

from __future__ import annotations

import copy
import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import GIBIBYTE, limited
from tiny import CONTROL, mutated, tokenizer_definition

from flashvl.errors import CheckpointError, MessageError
from flashvl.input.tokenizer import QWEN2_PATTERN, Tokenizer

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


VOCABULARY = DEFINITION["model"]["vocab"]
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": QWEN2_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}


def sequence(*steps) -> dict:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def with_model(**changes) -> dict:
    return {"model": DEFINITION["model"] | changes}


def with_added(number: int, **changes) -> dict:
    added = copy.deepcopy(DEFINITION["added_tokens"])
    added[number] |= changes
    return {"added_tokens": added}


PUBLISHED = {
    "Qwen2.5's tokenizer.json": {
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        **with_model(
            continuing_subword_prefix="",
            end_of_word_suffix="",
            merges=[" ".join(merge) for merge in DEFINITION["model"]["merges"]],
        ),
    },
    "no normalizer": {"normalizer": None},
    "other offsets": {"pre_tokenizer": sequence(SPLIT, BYTE_LEVEL | {"trim_offsets": True})},
    "another decoder's flags": {"decoder": BYTE_LEVEL | {"use_regex": True}},
    "added tokens in another order": {"added_tokens": DEFINITION["added_tokens"][::-1]},
    "no flags but special": {
        "added_tokens": [
            {name: token[name] for name in ("id", "content", "special")}
            for token in DEFINITION["added_tokens"]
        ]
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_this_family_publishes_is_read(name):
    tokenizer = Tokenizer(DEFINITION | PUBLISHED[name])
    assert tokenizer.control == TOKENIZER.control
    for text in TEXTS[:-1]:
        assert tokenizer.encode(text) == TOKENIZER.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_alone_are_read():
    letters = {token: number for token, number in VOCABULARY.items() if number < 256}
    added = [
        token | {"id": 256 + number} for number, token in enumerate(DEFINITION["added_tokens"])
    ]
    changes = {
        "pre_tokenizer": BYTE_LEVEL,
        "added_tokens": added,
        **with_model(vocab=letters, merges=[]),
    }
    tokenizer = Tokenizer(DEFINITION | changes)
    assert len(tokenizer.encode("a 你")) == 5


# What the library builds as well, and what of it panics, hangs, or gives other ids each time.
OTHER_KINDS = {
    "dropout": (with_model(dropout=0.5), '"dropout".*None'),
    "a prefix": (with_model(continuing_subword_prefix="##"), '"continuing_subword_prefix"'),
    "a suffix": (with_model(end_of_word_suffix="</w>"), '"end_of_word_suffix"'),
    "unknown tokens": (with_model(unk_token="!"), '"unk_token"'),
    "fallback to bytes": (with_model(byte_fallback=True), '"byte_fallback"'),
    "ignored merges": (with_model(ignore_merges=True), '"ignore_merges"'),
    "WordLevel": ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "BPE"),
    "Unigram": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, "BPE"),
    "a map that panics": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
        '"normalizer".*NFC or none',
    ),
    "a normalizer that replaces": (
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}},
        '"normalizer"',
    ),
    "a decoder that panics": (
        {"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}},
        '"decoder".*ByteLevel',
    ),
    "no decoder": ({"decoder": None}, '"decoder"'),
    "a length of 0": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, '"pre_tokenizer"'),
    "an endless pattern": (
        {"pre_tokenizer": sequence(SPLIT | {"pattern": {"Regex": "(a+)+b"}}, BYTE_LEVEL)},
        '"pre_tokenizer".*Qwen2',
    ),
    "a space before": (
        {"pre_tokenizer": sequence(SPLIT, BYTE_LEVEL | {"add_prefix_space": True})},
        '"pre_tokenizer"',
    ),
    "GPT-2's pattern": (
        {"pre_tokenizer": sequence(SPLIT, BYTE_LEVEL | {"use_regex": True})},
        '"pre_tokenizer"',
    ),
    "a step more": ({"pre_tokenizer": sequence(SPLIT, SPLIT, BYTE_LEVEL)}, '"pre_tokenizer"'),
    "a pattern alone": ({"pre_tokenizer": SPLIT}, '"pre_tokenizer"'),
    "no bytes": ({"pre_tokenizer": None}, '"pre_tokenizer"'),
    "tokens around each text": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
        '"post_processor"',
    ),
    "a byte less": (
        with_model(vocab={k if k != "a" else "€": v for k, v in VOCABULARY.items()}),
        "lacks 1 of the 256 bytes, such as 'a'",
    ),
    "an id twice": (with_model(vocab=VOCABULARY | {"a": 5}), "one for each"),
    "a negative id": (with_model(vocab=VOCABULARY | {"a": -1}), "from 0"),
    "a gap": (with_model(vocab=VOCABULARY | {"a": 2**32 - 1}), "from 0 to 299"),
    "an id that is none": (with_model(vocab=VOCABULARY | {"a": True}), "numbers"),
    "an unknown part": (with_model(merges=[["a", "€"]]), "damaged"),
    "merges that are none": (with_model(merges={"a": "b"}), "lists of at most 1,000,000"),
    "a million merges": (with_model(merges=[["a", "b"]] * 1_000_001), "at most 1,000,000"),
    "10,000 added tokens": ({"added_tokens": [{}] * 10_001}, "at most 10,000"),
    "added tokens that are none": ({"added_tokens": {"a": 1}}, "must be a list"),
    "an added token that is none": ({"added_tokens": ["a"]}, "added token 1"),
    "an id in words": (with_added(1, id="301"), '"id" of added token 2'),
    "a content that is none": (with_added(1, content=5), '"content" of added token 2'),
    "an empty content": (with_added(1, content=""), "must have a text"),
    "a flag in words": (with_added(1, special="false"), '"special" of added token 2'),
    "a flag in numbers": (with_added(1, normalized=0), '"normalized" of added token 2'),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_tokenizers_are_refused_by_name(name):
    changes, words = OTHER_KINDS[name]
    with pytest.raises(CheckpointError, match=words):
        Tokenizer(DEFINITION | changes)


THE = TOKENIZER.encode("a")[0]


@pytest.mark.parametrize(
    "changes",
    [
        with_added(2, id=THE),
        with_added(2, id=DEFINITION["added_tokens"][1]["id"]),
        with_added(2, content=DEFINITION["added_tokens"][1]["content"]),
        with_added(2, content="a"),
        with_added(2, content="a", id=THE),
        with_added(4, id=1000),
        with_added(0, id=1000),
    ],
)
def test_an_added_token_has_an_id_that_no_text_can_give(changes):
    """Else the text of its id would be the control token, and decoding would hide it."""
    with pytest.raises(CheckpointError, match="added token"):
        Tokenizer(DEFINITION | changes)


def test_the_older_form_is_held_to_the_same(tmp_path):
    parts = write_parts(tmp_path)
    for number in (THE, 1000):
        added = parts["added_tokens.json"] | {"<|im_end|>": number}
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        with pytest.raises(CheckpointError, match="added token"):
            Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_pipe_or_a_link_to_nothing_in_the_place_of_a_file_is_refused(tmp_path, name):
    program = """
from pathlib import Path
from flashvl.input.tokenizer import Tokenizer
Tokenizer.from_folder(Path(folder))
"""
    write_parts(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    outcome = limited(program, seconds=20, memory=2 * GIBIBYTE, folder=str(tmp_path))
    assert "CheckpointError" in outcome.raised, outcome
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_a_text_that_panics_the_library_is_refused():
    """Its regular expressions give up on some ten million white spaces in a row."""
    with pytest.raises(MessageError, match="cannot be cut into tokens"):
        TOKENIZER.encode(" " * 12_000_000)
    assert TOKENIZER.encode("a") == [THE]


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
