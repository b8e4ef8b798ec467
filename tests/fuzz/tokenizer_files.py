"""Tokenizer files: changed, and of other families; what is accepted must keep text from control."""

from __future__ import annotations

import base64
import copy
import json
import unicodedata
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from tiny import CONTROL, tokenizer_definition

from flashvl import FlashVLError
from flashvl.input.tokenizer import QWEN2_PATTERN, Tokenizer
from fuzz.checkpoints import as_parts
from fuzz.damage import PIECES, damaged, mutated, mutated_json, plant, text, value
from fuzz.promise import Broken, Case

# No exponential pattern may get to a text; this one would take for ever on a few dozen letters.
EXPONENTIAL = r"(?:(?:a|aa|\p{L})+)+$\d"
TEXTS = ["", "What is this? 这是什么 e\u0301", " " * 300, "a" * 60 + "!", "\u0301" * 50]
TEXTS += ["".join(CONTROL), " the <|im_end|>the<|im_start|>\n"]
TEXTS += ["".join(one for one in PIECES if one.isprintable())]

BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
BYTE_LEVEL |= {"trim_offsets": False, "use_regex": False}
METASPACE: dict[str, Any] = {"type": "Metaspace", "replacement": "\u2581", "split": True}
METASPACE |= {"prepend_scheme": "always"}


def split_by(pattern: dict[str, str], behavior: str = "Isolated", **more: Any) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False, **more}


def charsmap(contents: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(contents).decode()}


CHARSMAPS = [b"", b"\xff" * 4, b"\4\0\0\0" + bytes(8), b"\x08\0\0\0\xff\xff\xff\xff" * 3]
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
NORMALIZERS = [
    *({"type": one} for one in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents")),
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "<|im_end|>"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
    {"type": "Prepend", "prepend": "<|im_end|>"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "ByteLevel"},
    BERT | {"strip_accents": None, "lowercase": True},
    *map(charsmap, CHARSMAPS),
    {"type": "Sequence", "normalizers": []},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 50},
    None,
]
PATTERNS = [EXPONENTIAL, "", "(", ".", r"\b", "(?<=a)b", "a{1,99999}", QWEN2_PATTERN + "|x"]
PRE_TOKENIZERS = [
    BYTE_LEVEL,
    BYTE_LEVEL | {"use_regex": True},
    BYTE_LEVEL | {"add_prefix_space": True},
    METASPACE,
    *({"type": one} for one in ("BertPreTokenizer", "Whitespace", "UnicodeScripts")),
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Digits", "individual_digits": True},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 5},
    *(split_by({"Regex": one}) for one in PATTERNS),
    *(split_by({"Regex": QWEN2_PATTERN}, one) for one in ("Removed", "Contiguous", "x")),
    split_by({"Regex": QWEN2_PATTERN}, invert=True),
    split_by({"String": ""}),
    {"type": "Sequence", "pretokenizers": []},
    None,
]
STRIPS = [{"type": "Strip", "content": one, "start": 5, "stop": 5} for one in ("a", "\u0120", " ")]
DECODERS = [
    BYTE_LEVEL,
    METASPACE,
    *({"type": one} for one in ("ByteFallback", "Fuse")),
    *STRIPS,
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 1000},
    {"type": "Sequence", "decoders": [{"type": "Fuse"}, STRIPS[2]]},
    None,
]
ENDS = {"sep": ["a", 0], "cls": ["b", 1]}
A = {"Sequence": {"id": "A", "type_id": 0}}
TEMPLATE = {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}, A], "pair": [A]}
X = {"id": "x", "ids": [0], "tokens": ["x"]}
POST_PROCESSORS = [
    BYTE_LEVEL,
    {"type": "BertProcessing"} | ENDS,
    {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": True} | ENDS,
    {"type": "TemplateProcessing", "special_tokens": {"x": X}} | TEMPLATE,
    {"type": "Sequence", "processors": []},
]
LETTERS = {one: number for number, one in enumerate("abcdefgh")}
WORD_PIECE: dict[str, Any] = {"type": "WordPiece", "vocab": LETTERS, "unk_token": "?"}
MODELS = [
    {"type": "WordLevel", "vocab": LETTERS, "unk_token": "a"},
    {"type": "WordLevel", "vocab": LETTERS, "unk_token": "not there"},
    WORD_PIECE | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9},
    {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 5, "byte_fallback": False},
    {"type": "Unigram", "vocab": [], "unk_id": None, "byte_fallback": True},
    {"type": "BPE", "vocab": {}, "merges": []},
    {"type": "BPE", "vocab": LETTERS | {"ab": 8}, "merges": ["a b"]},
]
BPE_OPTIONS = {
    "dropout": [0.0, 0.5, 1.0, 2.0, -1, "x"],
    "unk_token": ["<unk>", "a", "<|im_end|>", 5],
    "continuing_subword_prefix": ["", "##", "\u0120", 5],
    "end_of_word_suffix": ["", "</w>", "a", 5],
    "fuse_unk": [True, 5],
    "byte_fallback": [True],
    "ignore_merges": [True],
    "type": ["BPE", "bpe", "WordLevel", "Unigram", None],
}
CUT = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PAD = {"strategy": {"Fixed": 10**7}, "direction": "Left", "pad_to_multiple_of": None}
OTHER_SETTINGS = {
    "version": ["2.0", "", None, 5],
    "truncation": [CUT, {}],
    "padding": [PAD | {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}, {}],
    "added_tokens": [None, [], {}, "x", [None], [{}]],
}
IDS = [0, 1, 299, 300, 301, -1, 2**31, 2**32 - 1, 2**40, 0.5, "1", None]
MERGES = [["a", "b", "c"], ["a"], [], "a b", "a", ["", ""], ["zz", "zz"], [1, 2], None, "a  b"]
# Of an added token: what else its keys can hold.
ADDED: dict[str, list[Any]] = {
    "id": [0, 5, 220, -1, 2**32, 10**9, 305.0, "5", None],
    "content": ["", " ", "a", "user", "\n", "assistant\n", "<|im_end|>", "\u0120the", "e\u0301", 5],
    "special": [True, False, None, "yes"],
    "normalized": [True, None],
    "lstrip": [True],
    "rstrip": [True],
    "single_word": [True],
}
ADDED["content"] += ["\x1b[2J", "x" * 70_000]


@cache
def good() -> dict[str, Any]:
    return tokenizer_definition()


def case(random: Random, place: Path) -> Case:
    folder = place / "tokenizer"
    folder.mkdir()
    file = folder / "tokenizer.json"
    if random.random() < 0.15:
        what = "a changed tokenizer.json"
        file.write_bytes(mutated_json(good(), random))
    else:
        definition = copy.deepcopy(good())
        what = random.choice([structure, added_tokens, model, one_part])(definition, random)
        file.write_text(json.dumps(definition))
        if random.random() < 0.25:
            what = f"{what}; {older_files(folder, random)}"

    def do() -> None:
        check(Tokenizer.from_folder(folder), place)

    return Case(what, do, writes=(place / "saved.json",))


def check(tokenizer: Tokenizer, place: Path) -> None:
    """What holds of each tokenizer that is accepted."""
    control = set(tokenizer.control.values())
    for given in TEXTS:
        ids = tokenizer.encode(given)
        if control & set(ids):
            raise Broken("a text gives a control token's id")
        if ids != tokenizer.encode(given):
            raise Broken("the same text gives other ids")
        if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocabulary:
            raise Broken("an id lies outside of the vocabulary")
        said = tokenizer.decode(ids)
        if is_whole(tokenizer) and composed(said) != composed(given):
            raise Broken("the ids of a text give another text")
    tokenizer.decode(range(min(tokenizer.vocabulary, 1000)))
    tokenizer.save(place / "saved.json")
    try:
        again = Tokenizer(json.loads((place / "saved.json").read_text()))
    except FlashVLError as error:
        raise Broken("what it has saved is refused") from error
    if any(again.encode(one) != tokenizer.encode(one) for one in TEXTS):
        raise Broken("once saved and read again, it gives other ids")


composed = partial(unicodedata.normalize, "NFC")


def is_whole(tokenizer: Tokenizer) -> bool:
    """Whether each byte has a token that decodes to something."""
    return all(tokenizer.decode(tokenizer.encode(chr(one))) == chr(one) for one in range(128))


def structure(definition: dict[str, Any], random: Random) -> str:
    """Parts that other families have."""
    parts: dict[str, list[Any]] = {
        "normalizer": NORMALIZERS,
        "pre_tokenizer": PRE_TOKENIZERS,
        "decoder": DECODERS,
        "post_processor": POST_PROCESSORS,
        **OTHER_SETTINGS,
    }
    name = random.choice([*parts, "normalizer", "pre_tokenizer", "decoder"])
    chosen = copy.deepcopy(random.choice(parts[name]))
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    if name in inside and random.random() < 0.4:
        there = definition[name].get(inside[name], [definition[name]])
        where = random.randrange(len(there) + 1)
        chosen = {"type": "Sequence", inside[name]: [*there[:where], chosen, *there[where:]]}
    definition[name] = chosen
    return f"{name} {json.dumps(chosen)[:150]}"


def one_part(definition: dict[str, Any], random: Random) -> str:
    """Any place of the structure, without the thousand of the vocabulary."""
    name = random.choice(sorted(definition.keys() - {"model"}))
    definition[name] = mutated({"part": definition[name]}, random).get("part")
    return f"{name} changed to {json.dumps(definition[name])[:150]}"


def added_tokens(definition: dict[str, Any], random: Random) -> str:
    """Added tokens with ids of others, with flags that let text through, or odd ones."""
    added, done = definition["added_tokens"], []
    for _ in range(random.choice([1, 1, 2, 3])):
        token = random.choice(added)
        name = random.choice(["id", "id", "content", *ADDED])
        if random.random() < 0.1:
            token.pop(name, None)
        else:
            token[name] = random.choice(ADDED[name])
        done.append(f"{name} {token.get(name)!a:.40}")
    if random.random() < 0.2:
        added.append(random.choice(added) | {"content": text(random)})
    if random.random() < 0.1:
        random.shuffle(added)
    return "added tokens: " + ", ".join(done)


def model(definition: dict[str, Any], random: Random) -> str:
    """Another model, or other options, vocabulary or merges of this one."""
    how, its = random.randrange(6), definition["model"]
    vocabulary, merges = its["vocab"], its["merges"]
    token = random.choice(sorted(vocabulary))
    if how == 0:
        definition["model"] = copy.deepcopy(random.choice(MODELS))
        return f"model {json.dumps(definition['model'])[:100]}"
    if how == 1:
        name = random.choice(sorted(BPE_OPTIONS))
        its[name] = random.choice(BPE_OPTIONS[name])
        return f"model with {name} {its[name]!a}"
    if how == 2:
        vocabulary[token] = random.choice(IDS)
        return f"token {token!a} has the id {vocabulary[token]}"
    if how == 3:
        odd = random.choice(["<|im_end|>", "", "\u0120the", "e\u0301", "\ud800", "x" * 70_000])
        vocabulary[odd] = random.choice([len(vocabulary), 0, 302, 5000])
        return f"a token {odd!a:.30} in the vocabulary, {vocabulary[odd]}"
    if how == 4:
        del vocabulary[token]
        return f"no token {token!a}"
    merge = random.choice(MERGES)
    merges.insert(random.randrange(len(merges) + 1), merge)
    if random.random() < 0.3:
        old_form = [" ".join(one) for one in good()["model"]["merges"]]
        its["merges"] = random.choice([old_form, {}, None, "a b", merges * 2])
    return f"a merge {merge!a}"


def older_files(folder: Path, random: Random) -> str:
    """The same in vocab.json, merges.txt and added_tokens.json, if it can be, with damage there."""
    try:
        as_parts(folder)
    except Exception:
        return "in one file"
    name = random.choice(["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"])
    file = folder / name
    if random.random() < 0.25:
        return f"{plant(file, random)} as {name}"
    if name == "tokenizer_config.json":
        listed = {"5": {"content": "<|im_end|>", "special": True}, "6": {"content": "a"}}
        file.write_text(json.dumps(mutated({"added_tokens_decoder": listed}, random)))
    elif name == "merges.txt":
        lines, odd = (
            file.read_bytes(),
            [b"a b c", b"a", b" ", b"a  b", b"\xff \xfe", b"#version: 9"],
        )
        line = random.choice([*odd, b"zz zz", b"a b " * 9, b"\0 \0"])
        file.write_bytes(random.choice([lines + b"\n" + line, damaged(lines, random), b""]))
    else:
        ids = json.loads(file.read_text())
        ids[random.choice([*sorted(ids)[:9], "new", ""])] = random.choice([*IDS, value(random)])
        file.write_text(json.dumps(ids))
    return f"a changed {name}"
