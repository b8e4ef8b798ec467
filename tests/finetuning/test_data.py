"""Samples in both forms are read alike; what is damaged is refused by file and line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import encoded, mutated, picture, tiny_model, user

from flashvl.errors import DataError
from flashvl.finetuning.data import Sample, check_samples, held_out, read_samples
from flashvl.training.processes import ALONE

LLAVA = [
    {
        "id": "1",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A circle."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": ""},
        ],
    },
    {
        "image": ["sub/b.png"],
        "conversations": [
            {"from": "system", "value": "Be short."},
            {"from": "human", "value": "What colour?\n<image>"},
            {"from": "gpt", "value": "<image> is no picture here \u2028"},
        ],
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "\nHello"}]},
]
MESSAGES = [
    {
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": ""},
        ],
    },
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What colour?"},
                    {"type": "image", "image": "sub/b.png"},
                ],
            },
            {"role": "assistant", "content": "<image> is no picture here \u2028"},
        ],
    },
    {"messages": [*user("Hi"), {"role": "assistant", "content": "\nHello"}], "images": []},
]


def as_list(samples) -> str:
    return json.dumps(samples, indent=1)


def as_lines(samples) -> str:
    return "\r\n\n".join(json.dumps(one, ensure_ascii=False) for one in samples) + "\n"


@pytest.mark.parametrize("form", [LLAVA, MESSAGES])
@pytest.mark.parametrize("write", [as_list, as_lines, lambda samples: "\ufeff" + as_list(samples)])
def test_both_forms_say_the_same(form, write, tmp_path):
    file = tmp_path / "samples.json"
    file.write_text(write(form), encoding="utf-8")
    samples = read_samples(file)
    assert [one.image for one in samples] == [tmp_path / "a.png", tmp_path / "sub" / "b.png", None]
    assert samples[0].messages[0] == {"role": "user", "content": "What?"}
    assert [message["role"] for message in samples[0].messages] == ["user", "assistant"] * 2
    assert samples[1].messages[1]["content"] == "What colour?"
    assert samples[1].messages[2]["content"] == "<image> is no picture here \u2028"
    assert samples[2].messages[1]["content"] == "\nHello"
    elsewhere = read_samples(file, tmp_path / "pictures")
    assert elsewhere[0].image == tmp_path / "pictures" / "a.png"


def test_a_sample_knows_its_line(tmp_path):
    file = tmp_path / "samples.json"
    file.write_text(as_list(LLAVA), encoding="utf-8")
    lines = file.read_text(encoding="utf-8").split("\n")
    for sample in read_samples(file):
        name, number = sample.place.split(", line ")
        assert name == "samples.json"
        assert lines[int(number) - 1].strip() == "{"
    file.write_text(as_lines(LLAVA), encoding="utf-8")
    assert [one.place for one in read_samples(file)] == [
        f"samples.json, line {n}" for n in (1, 3, 5)
    ]


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (7, "must be a JSON object"),
        ({}, 'either "conversations" or "messages"'),
        ({"conversations": [], "messages": []}, "either"),
        ({"conversations": []}, "no messages"),
        ({"conversations": "x"}, "must be a list of turns"),
        ({"conversations": [1]}, "must be a list of turns"),
        ({"conversations": [{"value": "x"}]}, 'turn 1 must have a "from"'),
        ({"conversations": turns("a")}, "last message must be an assistant turn"),
        ({"conversations": turns("a", "b", "c")}, "last message"),
        ({"conversations": turns("a", "b")[1:]}, "message 1 is an answer"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "role 'robot'"),
        ({"conversations": [{"from": "human", "value": 5}, *turns("a", "b")[1:]]}, "must be text"),
        ({"image": ["a.png", "b.png"], "conversations": turns("<image>", "b")}, "2 pictures"),
        ({"image": "a.png", "conversations": turns("<image><image>", "b")}, "2 pictures"),
        ({"image": "a.png", "images": ["b.png"], "conversations": turns("a", "b")}, "2 pictures"),
        ({"conversations": turns("<image>\na", "b")}, "names no picture"),
        ({"image": "a.png", "conversations": turns("a <image> b", "b")}, "beginning or the end"),
        ({"image": "a.png", "conversations": turns("a", "b", "<image>", "c")}, "first question"),
        ({"image": "../a.png", "conversations": turns("a", "b")}, "outside the folder"),
        ({"image": "x/../../a.png", "conversations": turns("a", "b")}, "outside the folder"),
        ({"image": "/etc/passwd", "conversations": turns("a", "b")}, "outside the folder"),
        ({"image": "~/a.png", "conversations": turns("a", "b")}, "outside the folder"),
        ({"image": "", "conversations": turns("a", "b")}, "no file can be called"),
        ({"image": "a\0", "conversations": turns("a", "b")}, "no file can be called"),
        ({"image": 5, "conversations": turns("a", "b")}, "must be a text or a path"),
        ({"video": "a.mp4", "conversations": turns("a", "b")}, 'no "video"'),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "parts are"),
    ],
)
@pytest.mark.parametrize("write", [as_list, as_lines])
def test_what_is_no_sample_is_refused_by_its_line(sample, words, write, tmp_path):
    file = tmp_path / "samples.json"
    file.write_text(write([LLAVA[2], sample]), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_samples(file)
    line = 3 if write is as_lines else 2 + as_list([LLAVA[2]]).count("\n") - 1
    assert str(refused.value).startswith(f"samples.json, line {line}: ")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no samples"),
        ("[]", "no samples"),
        ("[", "line 1"),
        ("[,1]", "line 1"),
        ("nonsense", "line 1: it is not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('{"a": NaN}', "not a finite number"),
        (f"{as_list(LLAVA)} 7", "after the end of the list"),
        (as_list(LLAVA)[:-1], "cut short"),
        (as_list(LLAVA).replace("},\n {", "}\n {", 1), "lacks a comma"),
        ("\n" + json.dumps(LLAVA[2]) + '\n{"x": ', "line 3"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_refused(text, words, tmp_path):
    file = tmp_path / "samples.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_samples(file)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_bytes_that_are_no_text_and_files_that_are_none_are_refused(tmp_path):
    file = tmp_path / "samples.json"
    file.write_bytes(json.dumps(LLAVA[2]).encode() + b"\n\xff")
    with pytest.raises(DataError, match="line 2: it is not text in UTF-8"):
        read_samples(file)
    for other in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError, match="cannot be read"):
            read_samples(other)


@given(mutated([*LLAVA, *MESSAGES]), st.booleans(), st.integers(0, 3000))
def test_damaged_data_is_read_or_refused_in_one_line(tmp_path_factory, samples, lines, cut):
    file = tmp_path_factory.mktemp("damaged") / "samples.json"
    text = as_lines(samples).replace("\ud800", "\\ud800") if lines else as_list(samples)
    file.write_bytes(text.encode()[: cut if cut < 1500 else None])
    try:
        found = read_samples(file)
    except DataError as error:
        told = str(error)
        found = []
    else:
        told = "samples.json"
    assert "samples.json" in told
    assert len(told.splitlines()) == 1
    for one in found:
        assert one.messages[-1]["role"] == "assistant"
        assert one.image is None or one.image.is_relative_to(file.parent)


@pytest.fixture(scope="module")
def processor():
    return tiny_model().processor


def samples_of(folder, *texts: str) -> list[Sample]:
    answered = {"role": "assistant", "content": "b"}
    return [
        Sample(f"x, line {number}", folder / "a.png", [*user(text), answered])
        for number, text in enumerate(texts, 1)
    ]


def test_pictures_are_opened_and_tokens_counted_before_the_first_step(processor, tmp_path):
    samples = samples_of(tmp_path, "a", "b b")
    with pytest.raises(
        DataError, match=r"^x, line 1: there is no file .*; 1 more cannot be learned"
    ):
        check_samples(samples, processor, False, ALONE)
    whole = encoded(picture(), "PNG")
    for damaged in (whole[: len(whole) // 2], b"text", b""):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"^x, line 1: "):
            check_samples(samples, processor, False, ALONE)
    (tmp_path / "a.png").write_bytes(whole)
    for checked in check_samples(samples, processor, False, ALONE):
        ids = processor.example(checked.sample.image, checked.sample.messages).input_ids
        assert checked.lengths == (ids.shape[1],)


@pytest.mark.parametrize("text", ["a " * 500, "a" * 20_000])
def test_what_is_too_long_is_an_error_or_counted(processor, tmp_path, text):
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    samples = samples_of(tmp_path, text, "a")
    with pytest.raises(DataError, match=r"line 1: the sample, of .* longer than the model"):
        check_samples(samples, processor, False, ALONE)
    (left,) = check_samples(samples, processor, True, ALONE)
    assert left.sample is samples[1]
    with pytest.raises(DataError, match="all samples are longer"):
        check_samples(samples[:1], processor, True, ALONE)


def test_a_share_is_held_out_with_all_of_its_pictures(processor, tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(), "PNG"))
    answered = [*user(), {"role": "assistant", "content": "b"}]
    samples = [Sample("x", tmp_path / f"{number % 10}.png", answered) for number in range(40)]
    checked = check_samples(samples, processor, False, ALONE)
    learned, apart = held_out(checked, 0.25, 0)
    assert len(apart) == 12
    assert not {one.sample.image for one in learned} & {one.sample.image for one in apart}
    assert held_out(checked, 0.25, 0) == (learned, apart)
    assert held_out(checked, 0.25, 1) != (learned, apart)
    with pytest.raises(DataError, match="cannot be held out"):
        held_out(checked[:1], 0.5, 0)


def test_absolute_paths_inside_the_folder_are_taken(tmp_path, monkeypatch):
    file = tmp_path / "samples.json"
    file.write_text(as_list([{"image": str(tmp_path / "a.png"), "conversations": turns("a", "b")}]))
    assert read_samples(file)[0].image == tmp_path / "a.png"
    monkeypatch.chdir(tmp_path)
    assert read_samples(file.relative_to(tmp_path))[0].image == tmp_path / "a.png"
