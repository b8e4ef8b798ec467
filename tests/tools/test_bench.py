"""`flashvl bench`: what it counts, how it takes turns, and the whole command. No clock decides."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from checkpoints import make_checkpoint
from tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from flashvl import FlashVLModel
from flashvl.checkpoint.files import read_headers
from flashvl.checkpoint.published import read_config
from flashvl.cli import build_parser, main
from flashvl.device import peak_bytes
from flashvl.errors import CheckpointError, FlashVLError
from flashvl.generation.generate import LAST, generate, new_cache, read_prompt
from flashvl.generation.sampling import Sampling
from flashvl.tools.bench import ceilings, measure, memory, random_checkpoint, report, training
from flashvl.tools.bench.measure import Timing, take_turns
from flashvl.tools.bench.memory import measure_memory
from flashvl.tools.bench.peers import compare_batch, compare_compiled, quantization_loss
from flashvl.tools.bench.random_checkpoint import NAMES, config_of
from flashvl.tools.bench.stages import (
    Sizes,
    Stages,
    count_stages,
    grid_of,
    input_shapes,
    picture_of,
)
from flashvl.tools.transformers_modules import Published, build_decoder, build_tower

CPU = torch.device("cpu")
STAGES = ["preprocess", "vision", "compressor", "prefill", "decode"]
SIZES = Sizes(tiles=1, prompt=50, new=3)
FAST = ["--prompt", "50", "--new", "3", "--runs", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _little_memory_and_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "READ_BYTES", 2**20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A checkpoint in bfloat16, made of transformers' modules."""
    folder = tmp_path_factory.mktemp("stored") / "model"
    make_checkpoint(folder, dtype=torch.bfloat16)
    return folder


def test_the_whole_command(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SERIES", 2)
    here = torch.ones(2**26)  # 256 MB, which are not in the process that measures memory
    more = [
        "--peer",
        "transformers",
        "--quantize",
        "int8",
        "--batch",
        "2",
        "--json",
        str(tmp_path / "report.json"),
    ]
    assert main(["bench", "--model", str(stored), *FAST, *more]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert json.loads((tmp_path / "report.json").read_text()) == result
    assert printed.index("ceiling") < printed.index("stage")

    machine, found, stages = result["machine"], result["ceilings"], result["stages"]
    assert machine["device"] == "cpu"
    assert machine["torch"] == torch.__version__
    rates = [found["read"], *found["one_row"].values()]
    rates += [rate for part in found["products"].values() for rate in part.values()]
    assert len(rates) == 7
    assert all(0 < rate < math.inf for rate in rates)

    assert list(stages) == ["load", *STAGES]
    config = read_config(stored, read_headers(stored))
    counts = count_stages(config, SIZES, torch.float32, torch.float32)
    for name, entry in stages.items():
        assert 0 < entry["seconds_min"] <= entry["seconds"] <= entry["seconds_max"]
        assert entry["runs"] == 2
        assert entry["bytes"] > 0
        steps = SIZES.new if name == "decode" else 1
        if name in counts:
            assert entry["operations"] == counts[name].operations / steps
            assert entry["operations_per_second"] * entry["seconds"] == pytest.approx(
                entry["operations"]
            )
    best = max(rate for part in found["products"].values() for rate in part.values())
    prefilling = stages["prefill"]
    assert prefilling["share_of_products"] == prefilling["operations_per_second"] / best
    decoding = stages["decode"]
    assert decoding["share_of_read"] == decoding["bytes_per_second"] / found["read"]
    assert (
        decoding["share_of_one_row"] == decoding["bytes_per_second"] / found["one_row"]["float32"]
    )

    peaks = [entry["peak_bytes"] for entry in stages.values()]
    assert peaks == sorted(peaks)  # each the most so far
    assert result["memory"]["peak_bytes"] == peaks[-1]
    assert 0 < result["memory"]["before_bytes"] < peak_bytes(CPU) - here.nbytes / 2
    numbers = sum(math.prod(header.shape) for header in read_headers(stored).values())
    assert result["memory"]["checkpoint_bytes"] == 2 * numbers

    for stage in ("vision", "prefill", "decode"):
        for dtype, sides in result["peer"][stage].items():
            if sides is not None:
                ours, theirs = sides["flashvl"], sides[f"transformers {dtype}"]
                assert sides["ratio"] == pytest.approx(ours["seconds"] / theirs["seconds"])
    assert result["peer"]["memory"]["before_bytes"] > 0
    assert result["quantized"]["loss"]["largest_difference"] > 0
    assert 0 <= result["quantized"]["loss"]["equal_tokens"] <= 1
    assert result["batch"]["rows"] == 2
    assert "to the first word" in printed


def test_operations_are_those_that_torch_counts(any_flash):
    config = any_flash.config
    counts = count_stages(config, SIZES, torch.float32, torch.float32)
    with torch.device("meta"):  # torch does not count attention as the CPU carries it out
        model = FlashVLModel(config)
        pixels, features = map(torch.empty, input_shapes(config, SIZES.tiles))
        prompt = torch.empty(1, SIZES.prompt, dtype=torch.long)
    cache = new_cache(model)
    cache.reserve(SIZES.prompt + SIZES.new)
    read = partial(model, cache=cache, logits_at=LAST)

    def decode():
        for _ in range(SIZES.new):
            read(prompt[:, :1])

    stages = {
        "vision": partial(model.vision, pixels),
        "compressor": partial(model.compressor, features),
        "prefill": partial(read, prompt),
        "decode": decode,
    }
    assert stages.keys() == counts.keys()
    for name, stage in stages.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            stage()
        assert counts[name].operations == counter.get_total_flops(), name


def test_bytes_by_hand():
    """Tiny: vocabulary 320, width 16, MLP 24, 2 layers, 4 heads, 2 key/value heads of 4."""
    config = tiny_model().config
    attention = 16 * 16 + 16 + 2 * (8 * 16 + 8) + 16 * 16
    layer = 16 + attention + 16 + 3 * 16 * 24
    read = 2 * layer + 16 + 320 * 16  # the last norm and the head
    a_token = 2 * 2 * 2 * 4  # keys and values, layers, key/value heads, head width
    counts = count_stages(config, SIZES, torch.bfloat16, torch.float32)

    prefilling = counts["prefill"]
    assert prefilling.weights == 2 * (read + 50 * 16)  # rows of the embedding
    assert prefilling.cache == 4 * a_token * (50 + 50)
    assert prefilling.ends == 8 * 50 + 4 * 320

    decoding = counts["decode"]
    assert decoding.weights == 3 * 2 * (read + 16)  # one row of the embedding
    assert decoding.cache == 4 * a_token * (3 + 51 + 52 + 53)
    assert decoding.ends == 3 * (8 + 4 * 320)
    assert decoding.bytes == decoding.weights + decoding.cache + decoding.ends


def test_weights_that_a_stage_does_not_use_are_not_counted():
    model = tiny_model("static").model
    counts = count_stages(model.config, SIZES, torch.float32, torch.float32)
    read = sum(
        weight.nbytes
        for name, weight in model.vision.named_parameters()
        if not name.startswith("pooling_head")
    )
    # Positions are read in the tower itself, not in a module of their own.
    assert counts["vision"].weights == read


@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_a_picture_has_the_tiles_that_were_asked_for(kind):
    flash = tiny_model(kind)
    possible = {"iss": [1, 3, 4, 7], "dynamic": [1, 3, 13], "static": [1]}[kind]
    for tiles in possible:
        grid = grid_of(tiles, flash.config.tiler)
        picture = picture_of(grid, flash.config.tiler)
        prompt = flash.prepare(picture, [{"role": "user", "content": "?"}])
        assert prompt.pixels.shape == input_shapes(flash.config, tiles)[0]
        assert prompt.grids == [grid]


def test_every_stage_runs_again_and_alone(any_flash):
    stages = Stages(any_flash, SIZES)
    assert list(stages.by_name) == STAGES
    for name in (*reversed(STAGES), *STAGES):
        stages.by_name[name]()
    assert stages.cache.length == SIZES.prompt + SIZES.new
    assert stages.vision().shape == stages.features.shape


def test_prefill_and_decode_are_passes_of_the_network():
    flash, passes = tiny_model(), []
    flash.model.register_forward_hook(
        lambda _, inputs, logits: passes.append((tuple(inputs[0].shape), logits.shape[1]))
    )
    stages = Stages(flash, SIZES)
    stages.prefill()
    assert passes == [((1, SIZES.prompt), 1)]  # of whose tokens the last alone gets logits
    stages.decode()
    assert passes[1:] == [((1, 1), 1)] * SIZES.new


def test_sides_take_turns():
    calls = []
    sides = {name: partial(calls.append, name) for name in "ab"}
    times = take_turns("", sides, 3, CPU)
    assert "".join(calls) == "ab" * 4  # the first of each warms up
    assert [len(timing.runs) for timing in times.values()] == [3, 3]


def test_what_takes_long_runs_once(monkeypatch):
    seconds = {"slow": iter([50.0]), "fast": iter([9.0, 3.0, 1.0, 2.0])}
    monkeypatch.setattr(measure, "seconds_of", lambda side, device: next(seconds[side]))
    times = take_turns("", {"slow": "slow", "fast": "fast"}, 3, CPU)
    assert times == {"slow": Timing((50.0,)), "fast": Timing((3.0, 1.0, 2.0))}
    assert times["fast"].median == 2.0
    assert times["fast"].per(2).runs == (1.5, 0.5, 1.0)


@pytest.mark.parametrize(("seconds", "calls"), [(5.0, 1), (1.0, 4), (0.004, 2 + 20 * 5)])
def test_ceilings_are_of_one_run_however_many_are_timed(seconds, calls, monkeypatch):
    ran = []

    def clock(run, device):
        before = len(ran)
        run()
        return seconds * (len(ran) - before)

    monkeypatch.setattr(measure, "seconds_of", clock)
    assert measure.best_of(partial(ran.append, None), CPU) == pytest.approx(seconds)
    assert len(ran) == calls


def test_times_in_words():
    seconds = (0.0012345, 0.0999, 0.9994, 0.9996, 61.0)
    in_words = ["1.23 ms", "99.9 ms", "999 ms", "1.00 s", "61.00 s"]
    assert [report.duration(one) for one in seconds] == in_words


def test_ratios_in_words():
    assert report.ratio("decode", {"ratio": 0.25}) == "4.00 x the tokens/s"
    assert report.ratio("vision", {"ratio": 0.25}) == "0.25 x the time"


def test_what_a_card_needs_at_least_is_bound_by_bytes_or_by_operations():
    found = {
        "vision": {"operations": 989e12, "bytes": 1.0},
        "prefill": {"operations": 989e9, "bytes": 3.35e12},
        "decode": {"operations": 0, "bytes": 3.35e9},
    }
    said = report.estimate(found)
    assert "not measured" in said
    assert said.endswith("vision 1.00 s, prefill 1.00 s, a token 1 ms")


def test_answers_side_by_side_are_as_many_as_one_by_one():
    flash = tiny_model()
    result = compare_batch(Stages(flash, SIZES), 3, runs=2)
    row = read_prompt(
        flash.model, Stages(flash, SIZES).preprocess(), Sampling(max_new_tokens=SIZES.new)
    )
    for _ in generate(flash.model, [row], Sampling(), flash.stop_ids):
        pass
    assert (result["rows"], result["tokens"]) == (3, 3 * len(row.ids))
    together, alone = result["together"]["seconds"], result["one by one"]["seconds"]
    assert result["ratio"] == together / alone
    assert "3 pictures and questions" in report.batch({"batch": result})


def test_a_model_loses_nothing_against_itself():
    stages = Stages(tiny_model(), SIZES)
    loss = quantization_loss(stages, stages.flash)
    assert (loss["largest_difference"], loss["mean_difference"]) == (0.0, 0.0)
    assert (loss["divergence"], loss["equal_tokens"], set(loss["layers"])) == (0.0, 1.0, {0.0})
    assert loss["tokens"] == 512 - stages.preprocess().input_ids.shape[1]
    assert loss["largest_logit"] > 0


def test_another_model_loses():
    loss = quantization_loss(Stages(tiny_model(), SIZES), tiny_model(seed=1))
    assert 0 < loss["mean_difference"] < loss["largest_difference"]
    assert loss["divergence"] > 0
    assert min(loss["layers"]) > 0.1
    assert loss["relative"] == loss["largest_difference"] / loss["largest_logit"]
    assert loss["equal_tokens"] < 1


def test_compiled_stages_are_compared_with_the_eager_model():
    result = compare_compiled(Stages(tiny_model(), SIZES), tiny_model(), runs=2)
    assert list(result) == ["vision", "prefill", "decode"]
    assert all(sides["seconds_to_compile"] > 0 for sides in result.values())
    assert "compiled takes" in report.compiled({"compiled": result})


@pytest.mark.slow
def test_the_command_compiles(stored, tmp_path, monkeypatch, capsys):
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    assert main(["bench", "--model", str(stored), *FAST, "--compile"]) == 0
    assert list(compiled.rglob("*.so"))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["compiled"]
    assert list(result) == ["vision", "prefill", "decode"]
    for sides in result.values():
        assert sides["seconds_to_compile"] > 0
        assert sides["ratio"] == pytest.approx(
            sides["compiled"]["seconds"] / sides["flashvl"]["seconds"]
        )


@pytest.mark.parametrize("kind", ["dynamic-iss", "static"])
def test_peers_in_bfloat16_hold_the_stored_weights(kind, tmp_path):
    reference = make_checkpoint(tmp_path / "model", kind=kind, dtype=torch.bfloat16)
    published = Published(tmp_path / "model", torch.bfloat16)
    config = read_config(tmp_path / "model", read_headers(tmp_path / "model"))
    modules = [
        (build_tower(published, config.vision, config.vision.image_size), reference.tower),
        (build_decoder(published), reference.decoder),
    ]
    for ours, made in modules:
        weights = dict(made.named_parameters())
        assert dict(ours.named_parameters()).keys() <= weights.keys()
        for name, weight in ours.named_parameters():
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight.float(), weights[name]), name


@pytest.mark.parametrize(("code", "said"), [(2, "failed: the reason$"), (-9, "memory ran out$")])
def test_another_process_that_fails_says_why(stored, monkeypatch, code, said):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, code, "", "warning\nthe reason\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(FlashVLError, match=said):
        measure_memory(stored, SIZES, CPU, "auto")


def test_the_other_process_ends_with_one_line(tmp_path, monkeypatch, capsys):
    settings = json.dumps([str(tmp_path), vars(SIZES), "cpu", "auto", False])
    monkeypatch.setattr(sys, "argv", ["", settings])
    assert memory.main() == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tiles", "0"], "--tiles"),
        (["--tiles", "2"], "into 1, 3, 4, 5, 6, 7 tiles"),
        (["--tiles", "8"], "into 1, 3, 4, 5, 6, 7 tiles"),
        (["--prompt", "0"], "--prompt"),
        (["--new", "-1"], "--new"),
        (["--batch", "1"], "--batch"),
        (["--runs", "0"], "--runs"),
        (["--prompt", "2040", "--new", "9"], "context of 2048"),
        (["--prompt", "many"], "many"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "nano", "--random", "nano"], "--random"),
        (["--random", "3b"], "3b"),
        (["--peer", "llama"], "llama"),
        (["--quantize", "int3"], "int3"),
        (["--device", "toaster"], "toaster"),
        (["--json", __file__], "is there already"),
        (["--json", "no-such-folder/report.json"], "no-such-folder"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, said, capsys):
    try:
        code = main(["bench", *arguments])
    except SystemExit as end:  # argparse ends the process itself
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize("name", random_checkpoint.NAMES)
def test_the_command_line_knows_every_random_model(name):
    assert build_parser().parse_args(["bench", "--random", name]).random == name


@pytest.fixture
def cache_folder(tmp_path):
    return tmp_path / "flashvl"


def test_random_weights_are_written_once(cache_folder, monkeypatch):
    folder = random_checkpoint.kept_random_checkpoint("nano")
    assert folder == cache_folder / "random-nano"
    assert list(cache_folder.iterdir()) == [folder]
    config = read_config(folder, read_headers(folder))
    assert config.decoder == random_checkpoint.config_of("nano").decoder
    assert {header.dtype for header in read_headers(folder).values()} == {"BF16"}

    def refuse(*_):
        raise AssertionError("written again")

    monkeypatch.setattr(random_checkpoint, "write_in_other_process", refuse)
    assert random_checkpoint.kept_random_checkpoint("nano") == folder


def test_random_weights_cut_off_are_not_taken_for_whole(cache_folder, monkeypatch):
    def cut_off(name, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(random_checkpoint, "write_in_other_process", cut_off)
    with pytest.raises(KeyboardInterrupt):
        random_checkpoint.kept_random_checkpoint("nano")
    assert list(cache_folder.iterdir()) == []


def test_a_writer_that_fails_is_one_line(cache_folder):
    taken = cache_folder / "taken"
    taken.mkdir(parents=True)
    (taken / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not written: .*holds a model already"):
        random_checkpoint.write_in_other_process("nano", taken)


def test_a_cache_folder_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["bench", "--random", "nano"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("way", list(training.WAYS))
@pytest.mark.parametrize("kind", ["dynamic-iss", "dynamic", "static"])
def test_both_sides_of_a_training_learn_the_same(way, kind, tmp_path):
    """The loss before the first step; after it each takes the steps of its own optimizer."""
    make_checkpoint(tmp_path, kind=kind)
    tiles = 1 if kind == "static" else 3
    text = training.sample(tmp_path, Sizes(tiles, 100, 5))
    ours, theirs = (build(tmp_path, way, text, CPU) for build in training.STEPS.values())
    first = ours()
    assert theirs() == pytest.approx(first, rel=1e-5)
    assert ours() < first
    assert theirs() < first


@pytest.mark.slow
def test_training_is_measured(stored, tmp_path, capsys):
    options = ["--model", str(stored), *FAST, "--train", "--json", str(tmp_path / "report.json")]
    assert main(["bench", *options]) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])["training"]
    assert json.loads((tmp_path / "report.json").read_text())["training"] == result
    for way in training.WAYS:
        for side in training.STEPS:
            one = result[way][side]
            assert one["tokens_per_second"] == pytest.approx(result["tokens"] / one["seconds"])
            assert one["peak_bytes"] > 0
        assert f"{result[way]['ratio']:.2f} x time" in said


def test_the_model_to_train_on_a_laptop_has_the_shape_of_the_2b():
    with torch.device("meta"):
        model = FlashVLModel(config_of("300m"))
    assert 290e6 < sum(one.numel() for one in model.parameters()) < 330e6
    assert model.config.decoder.width == config_of(NAMES["2b"]).decoder.width
