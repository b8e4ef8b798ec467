"""The command: answers that are never lost, asked for twice or mixed, and figures of them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.device import peak_bytes
from flashvl.evaluation import evaluate as evaluate_module
from flashvl.evaluation import nano_set
from flashvl.evaluation.answers import Answer, Answers
from flashvl.evaluation.nano_set import nano_table
from flashvl.evaluation.runner import Runner

ROOT = Path(__file__).parents[2]
NANO = ROOT / "weights" / "nano"
SCENES = 12
ROWS = 4 * SCENES


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A short edition of nano's set."""
    file = tmp_path_factory.mktemp("data") / "nano.tsv"
    file.write_bytes(nano_table(SCENES))
    return file


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch, nano):
    """nano is loaded once for all runs in this process."""
    load = FlashVL.from_pretrained
    monkeypatch.setattr(
        FlashVL,
        "from_pretrained",
        lambda name, *rest, **options: (
            nano
            if name == "nano" and options == {"quantize": None}
            else load(name, *rest, **options)
        ),
    )


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu")


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "--device", "cpu", "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(data, nano, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    figures = out.parent / "figures.json"
    assert main(arguments(data, out, "--json", str(figures))) == 0
    return out


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def refusal(capsys, *command: str) -> str:
    """The one line with which a command is refused."""
    assert main(list(command)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def test_the_files_of_a_run(whole):
    assert list(files(whole)) == [
        "nano_nano.json",
        "nano_nano.jsonl",
        "nano_nano.tsv",
        "nano_nano.xlsx",
    ]
    answers = lines(whole / "nano_nano.jsonl")
    assert [one["index"] for one in answers] == [str(number) for number in range(ROWS)]
    assert all(one.keys() == {"index", "prediction"} for one in answers)


def test_the_figures_of_a_run_are_those_of_its_files(whole, capsys, tmp_path):
    figures = json.loads((whole.parent / "figures.json").read_text())
    assert figures["nano"]["score"] > 85
    assert {"choice", "yes or no", "open"} <= figures["nano"].keys()
    for suffix in ("tsv", "xlsx"):
        target = tmp_path / f"{suffix}.json"
        predictions = tmp_path / f"nano.{suffix}"
        shutil.copy(whole / f"nano_nano.{suffix}", predictions)
        assert main(["evaluate", "--score", str(predictions), "--json", str(target)]) == 0
        assert json.loads(target.read_text()) == figures
        assert f"{figures['nano']['score']:.4f}" in capsys.readouterr().out


def test_a_run_that_is_done_asks_nothing_again(whole, data, monkeypatch, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "nano_nano.xlsx").unlink()
    (out / "nano_nano.tsv").unlink()
    monkeypatch.setattr(Runner, "_answer_together", lambda *_: pytest.fail("asked again"))
    assert main(arguments(data, out)) == 0
    assert files(out) == files(whole)


def test_more_rows_of_a_set_ask_for_the_new_ones_alone(whole, data, monkeypatch, tmp_path):
    out, asked = tmp_path / "out", []
    together = Runner._answer_together

    def noted(self, rows):
        asked.extend(row.index for row in rows)
        return together(self, rows)

    monkeypatch.setattr(Runner, "_answer_together", noted)
    assert main(arguments(data, out, "--limit", "10")) == 0
    assert len(lines(out / "nano_nano.jsonl")) == 10
    assert main(arguments(data, out, "--batch", "5")) == 0
    assert len(asked) == len(set(asked)) == ROWS
    assert main(arguments(data, out, "--limit", "3")) == 0
    assert len(asked) == ROWS
    assert len(lines(out / "nano_nano.jsonl")) == ROWS  # what is there stays
    assert (out / "nano_nano.jsonl").read_bytes() == (whole / "nano_nano.jsonl").read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_run_goes_on_where_it_was(whole, data, monkeypatch, tmp_path, seed):
    """It ends at any moment, also within a line."""
    out, chance = tmp_path / "out", random.Random(seed)
    add = Answers.add

    def interrupted(self, answers):
        before = self._own.stat().st_size if self._own.exists() else 0
        add(self, answers)
        if chance.random() < 0.4:
            after = self._own.stat().st_size
            os.truncate(self._own, chance.randint(before, after))
            raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "add", interrupted)
    ends = []
    while not ends or ends[-1] == 130:
        ends.append(main(arguments(data, out, "--batch", "4")))
        assert len(ends) < 60
    assert ends[-1] == 0
    assert len(ends) > 1
    assert files(out) == files(whole)


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "flashvl", *arguments(data, out, "--model", str(NANO), *more)]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_same_files(whole, data, tmp_path):
    out, chance, killed = tmp_path / "out", random.Random(0), 0
    answers = out / "nano_nano.jsonl"
    while True:
        before = answers.stat().st_size if answers.exists() else 0
        process = subprocess.Popen(
            command(data, out, "--batch", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and killed < 8:
            if answers.exists() and answers.stat().st_size > before:
                time.sleep(chance.uniform(0, 0.02))
                process.kill()
                break
            time.sleep(0.005)
        _, said = process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, said
            break
        killed += 1
    assert killed >= 3
    assert files(out) == files(whole)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def run_together(count: int, line: list[str]) -> list[subprocess.CompletedProcess]:
    """As torchrun starts them."""
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            line,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(line, process.returncode, *said)
        for process, said in zip(started, ended)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_processes_share_the_rows_and_give_the_same_files(whole, data, tmp_path, count):
    out = tmp_path / "out"
    first, *others = run_together(count, command(data, out))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("nano ")
    assert [(one.returncode, one.stdout) for one in others] == [(0, "")] * (count - 1)
    assert files(out) == files(whole)


@pytest.mark.slow
def test_what_several_processes_left_another_number_takes_up(whole, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    kept = whole / "nano_nano.jsonl"
    every = kept.read_bytes().splitlines(keepends=True)
    shutil.copy(whole / "nano_nano.json", out)
    (out / "nano_nano.jsonl").write_bytes(b"".join(every[::5]))
    (out / "nano_nano.jsonl.4").write_bytes(b"".join(every[1::5]) + every[2][:20])
    ended = run_together(2, command(data, out))
    assert [one.returncode for one in ended] == [0, 0]
    assert files(out) == files(whole)


@pytest.mark.slow
def test_if_the_first_process_refuses_the_others_end(whole, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = files(out)
    ended = run_together(2, command(data, out, "--reencode", "none"))
    assert [one.returncode for one in ended] == [2, 2]
    assert "other settings" in ended[0].stderr
    assert files(out) == before


def other_nano(folder: Path) -> Path:
    """A folder of nano's name with other weights."""
    flash = FlashVL.from_pretrained(NANO, device="cpu", dtype="float32")
    with torch.no_grad():
        flash.model.decoder.head.weight.mul_(1.01)
    flash.save_pretrained(folder / "nano")
    return folder / "nano"


def test_answers_of_other_weights_are_never_mixed_in(whole, data, capsys, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = files(out)
    said = refusal(capsys, *arguments(data, out, "--model", str(other_nano(tmp_path))))
    assert "nano_nano.json is of a run with other settings (weights " in said
    assert "--out" in said
    assert files(out) == before


@pytest.mark.parametrize(
    ("more", "key"),
    [(["--reencode", "none"], "reencode"), (["--quantize", "int8"], "quantize")],
)
def test_answers_of_other_settings_are_never_mixed_in(whole, data, capsys, tmp_path, more, key):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = files(out)
    assert f"({key} " in refusal(capsys, *arguments(data, out, *more))
    assert files(out) == before


def test_answers_to_another_table_of_the_same_name_are_never_mixed_in(whole, capsys, tmp_path):
    out, data = tmp_path / "out", tmp_path / "nano.tsv"
    shutil.copytree(whole, out)
    data.write_bytes(nano_table(SCENES + 1))
    assert "(questions " in refusal(capsys, *arguments(data, out))


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "xlsx"])
def test_a_file_that_no_run_wrote_stays(data, capsys, tmp_path, suffix):
    file = tmp_path / f"nano_nano.{suffix}"
    file.write_text("a user's own")
    assert f"{file} is there already" in refusal(capsys, *arguments(data, tmp_path))
    assert files(tmp_path) == {file.name: b"a user's own"}


def test_a_folder_that_another_run_writes_to_is_refused(whole, data, capsys, tmp_path):
    with evaluate_module.storage.held(tmp_path):
        assert "another run" in refusal(capsys, *arguments(data, tmp_path))
    assert files(tmp_path) == {}


def test_rows_with_errors_are_told_scored_and_tried_again(capsys, tmp_path):
    """Their pictures may be there the next time."""
    table = tmp_path / "own.tsv"
    lines_of = ["index\tquestion\tanswer\timage_path"]
    pictures = sorted((NANO / "pictures").glob("*.png"))[:2]
    lines_of += [f"{n}\tIs there a number?\tNo\t{n}.png" for n in range(4)]
    table.write_text("\n".join(lines_of))
    for number in (0, 2):
        shutil.copy(pictures[0], tmp_path / f"{number}.png")
    out, first, second = tmp_path / "out", tmp_path / "1.json", tmp_path / "2.json"
    assert main(arguments(table, out, "--json", str(first))) == 0
    said = capsys.readouterr().err
    assert f"\nown: 2 rows have no answer; {table}, row 2 (index 1)" in said
    assert [set(one) for one in lines(out / "nano_own.jsonl")] == [
        {"index", "prediction"},
        {"index", "error"},
    ] * 2
    assert main(["evaluate", "--score", str(out / "nano_own.tsv")]) == 0
    for number in (1, 3):
        shutil.copy(pictures[1], tmp_path / f"{number}.png")
    assert main(arguments(table, out, "--json", str(second))) == 0
    assert all("prediction" in one for one in lines(out / "nano_own.jsonl"))
    scores = [json.loads(file.read_text())["own"]["score"] for file in (first, second)]
    assert scores[0] <= scores[1]


def test_what_cannot_be_scored_keeps_no_other_set_from_its_answers(data, capsys, tmp_path):
    """A row of MME without a category: no rule says where it counts."""
    table, out = tmp_path / "MME.tsv", tmp_path / "out"
    table.write_text("index\tquestion\tanswer\timage_path\n0\tIs it red?\tNo\t0.png\n")
    shutil.copy(next((NANO / "pictures").glob("*.png")), tmp_path / "0.png")
    assert main(arguments(data, out, "--data", str(table), str(data))) == 2
    assert "MME.tsv, row 1 (index 0) has no category" in capsys.readouterr().err
    assert len(lines(out / "nano_MME.jsonl")) == 1
    assert len(lines(out / "nano_nano.jsonl")) == ROWS


def test_a_set_is_found_by_its_name_and_its_edition_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LMUData", str(tmp_path))
    table = tmp_path / "MME.tsv"
    picture = "x" * 80
    table.write_text(
        "index\tcategory\timage_path\tquestion\tanswer\timage\n"
        f"0\tcolor\ta.jpg\tIs it red?\tYes\t{picture}\n1\tcolor\ta.jpg\tIs it blue?\tNo\t0\n"
    )
    figures = tmp_path / "figures.json"
    command_line = ["evaluate", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command_line, "--data", "MME", "--json", str(figures)]) == 0
    said = capsys.readouterr()
    assert "MME.tsv is not the known edition: 2 rows" in said.err
    assert "2,374" in said.err or "2374" in said.err
    assert "MME: 2 rows have no answer" in said.err
    assert json.loads(figures.read_text())["MME"]["score"] == 0
    assert "published: the model card on DynamicISS" in said.out
    assert "1850" in said.out
    # Without --data: all that is in the folder.
    assert main(command_line) == 0
    assert "MME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data", "MMStar"], "no MMStar.tsv in "),
        (["--data", "no.tsv"], "no.tsv"),
        ([], "MMMU_DEV_VAL.tsv in "),
        (["--data", "nano", "--batch", "0"], "--batch must be at least 1, found 0"),
        (["--data", "nano", "--limit", "-3"], "--limit must be at least 1, found -3"),
        (["--score", "no_MME.tsv"], "no_MME.tsv"),
        (["--data", "nano", "--json", "nowhere/figures.json"], "there is no folder nowhere"),
    ],
)
def test_bad_options_are_one_line(capsys, monkeypatch, tmp_path, more, words):
    monkeypatch.setenv("LMUData", str(tmp_path))
    assert words in refusal(capsys, "evaluate", "--out", str(tmp_path / "out"), *more)


def test_a_set_is_answered_once(capsys, data, tmp_path):
    said = refusal(capsys, *arguments(data, tmp_path / "out"), "--data", str(data), str(data))
    assert "nano twice" in said


def test_figures_never_replace_a_file(capsys, data, tmp_path):
    figures = tmp_path / "figures.json"
    figures.write_text("mine")
    for way in (["--data", str(data)], ["--score", str(data)]):
        said = refusal(capsys, "evaluate", *way, "--json", str(figures))
        assert "figures.json is there already" in said
    assert figures.read_text() == "mine"


def test_the_table_on_the_page_is_answered_and_scored(capsys, tmp_path):
    """As a reader would copy it, with nano's pictures in the places of its own."""
    page = (ROOT / "notebooks" / "evaluation.md").read_text(encoding="utf-8")
    table = re.search(r"```\n(index\t.*?)```", page, re.DOTALL).group(1)
    (tmp_path / "questions.tsv").write_text(table, encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    for name in re.findall(r"pictures/\S+", table):
        shutil.copy(next((NANO / "pictures").glob("*.png")), tmp_path / name)
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    questions = tmp_path / "questions.tsv"
    assert main(arguments(questions, out, "--json", str(figures))) == 0
    assert capsys.readouterr().err.count("\n") == 1  # no row has an error
    scored = json.loads(figures.read_text())["questions"]
    assert set(scored) == {"score", "choice", "yes or no", "open", "exact", "Overall"}


def test_nano_is_drawn_into_the_folder_and_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(nano_set, "nano_table", lambda: nano_table(2))
    for _ in range(2):
        assert main(["evaluate", "--data", "nano", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "nano.tsv").read_bytes() == nano_table(2)
    assert len(lines(tmp_path / "nano_nano.jsonl")) == 8


def test_at_the_end_it_says_how_fast_it_was_and_in_how_much_memory(data, capsys, tmp_path):
    assert main(arguments(data, tmp_path)) == 0
    (said,) = capsys.readouterr().err.splitlines()
    told = re.fullmatch(
        r"nano: 48 rows in \d+\.\d minutes, (\d+\.\d) a second, (\d\.\d\d) GB of memory at most",
        said,
    )
    assert told
    assert float(told[1]) > 0
    assert 0.1 < float(told[2]) <= peak_bytes(torch.device("cpu")) / 1e9 + 0.005
    assert main(arguments(data, tmp_path)) == 0
    assert capsys.readouterr().err == ""  # nothing was asked


def test_progress_tells_rows_speed_and_the_score_so_far(data, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(evaluate_module, "show_progress", lambda *args: shown.append(args))
    assert main(arguments(data, tmp_path, "--batch", "8")) == 0
    assert [done for _, done in shown] == [number / 6 for number in range(1, 7)]
    text, _ = shown[-1]
    assert text.startswith("nano 48/48, ")
    assert " rows/s, 0 min left, " in text
    assert float(text.rpartition(", ")[2]) > 80


def test_a_file_of_answers_bears_what_a_cut_leaves(tmp_path):
    answers = Answers(tmp_path, "m_s")
    one, two = Answer("1", "a\n是\u2028b"), Answer("2", None, "broken")
    answers.add([one, two])
    with answers.file.open("ab") as file:
        file.write(b'{"index": "3", "predi')
    again = Answers(tmp_path, "m_s")
    again.read()
    assert again.by_index == {"1": one, "2": two}
    again.add([Answer("2", "whole")])
    (tmp_path / "m_s.jsonl.1").write_bytes(b'{"index": "2", "error": "old"}\n[]\n7\n{}\n\xff\n')
    last = Answers(tmp_path, "m_s", 2)
    last.read()
    assert last.by_index == {"1": one, "2": Answer("2", "whole")}
    last.add([Answer("0", "")])
    last.gather(["0", "1", "2", "3"])
    assert [file.name for file in tmp_path.iterdir()] == ["m_s.jsonl"]
    assert lines(answers.file) == [
        {"index": "0", "prediction": ""},
        {"index": "1", "prediction": "a\n是\u2028b"},
        {"index": "2", "prediction": "whole"},
    ]
