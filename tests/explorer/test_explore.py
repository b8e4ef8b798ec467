"""`flashvl explore`: the file that it writes, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import webbrowser
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from explorer.in_node import needs_node, run_in_node
from safetensors.torch import load
from tiny import picture, tiny_model

from flashvl import FlashVL
from flashvl.assumptions import choices_of
from flashvl.cli import main
from flashvl.errors import ArgumentError
from flashvl.tools import explore
from flashvl.tools.explore import FOLDER, joined, page, weights_of

MIB = 2**20


class Parts(HTMLParser):
    """The page's scripts and styles by id or kind, and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.parts: dict[str, str] = {}
        self.policy, self.links, self._inside = "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag in ("script", "style"):
            self._inside = values.get("id", tag)
            self.parts[self._inside] = ""

    def handle_data(self, data):
        if self._inside is not None:
            self.parts[self._inside] += data

    def handle_endtag(self, tag):
        self._inside = None


@pytest.fixture(scope="module")
def nano_page(tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["explore", "--no-open", "--out", str(out)]) == 0
    return out.read_bytes()


def test_the_page_is_whole_small_and_allows_nothing_else(nano_page):
    assert len(nano_page) < 6 * MIB
    found = Parts(nano_page.decode("utf-8"))
    assert all(link.startswith(("data:", "#")) for link in found.links)
    rules = dict(one.strip().split(" ", 1) for one in found.policy.split(";"))
    for name in ("script", "style"):
        digest = hashlib.sha256(found.parts[name].encode("utf-8")).digest()
        assert rules[f"{name}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["worker-src"] == "blob:"
    assert "connect-src" not in rules
    assert "unsafe" not in found.policy
    assert "innerHTML" not in found.parts["script"]
    assert "eval(" not in found.parts["script"]


def test_the_weights_inside_are_the_models(nano_page):
    flash = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
    tensors = load(base64.b64decode(Parts(nano_page.decode("utf-8")).parts["weights"]))
    state = flash.model.state_dict()
    assert tensors.keys() == state.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.float(), state[name])


def test_weights_that_bfloat16_would_round_stay_as_they_are():
    flash = tiny_model()
    tensors = load(weights_of(flash))
    for name, tensor in flash.model.state_dict().items():
        assert torch.equal(tensors[name].float(), tensor), name
    assert torch.float32 in {tensor.dtype for tensor in tensors.values()}


def test_what_is_said_cannot_end_the_data(nano_page):
    question = "</script><script>alert(1)</script><!-- “"
    image = picture()
    contents = page(tiny_model(), "<b>nano</b>", image, question).decode("utf-8")
    data = json.loads(Parts(contents).parts["data"])
    assert (data["question"], data["name"]) == (question, "<b>nano</b>")
    assert contents.count("</script>") == nano_page.count(b"</script>")
    assert json.loads(Parts(page(tiny_model(), "x", None, "\udcff").decode()).parts["data"])
    found = explore.load_image(base64.b64decode(data["image"]))
    assert np.array_equal(np.asarray(found), np.asarray(image))


def test_a_large_picture_is_made_smaller():
    data = json.loads(Parts(page(tiny_model(), "x", picture(3000, 20)).decode()).parts["data"])
    assert explore.load_image(base64.b64decode(data["image"])).size == (1024, 7)


def test_it_opens_the_browser_and_replaces_nothing(tmp_path, monkeypatch, capsys, folder):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) or len(opened) < 3)
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "--model", str(folder)]) == 0
    out = tmp_path / "explore.html"
    assert opened == [out.as_uri()]
    assert capsys.readouterr().out == "explore.html\n"
    before = out.read_bytes()
    assert main(["explore", "--model", str(folder)]) == 0  # the very same page
    assert len(opened) == 2
    assert main(["explore", "--model", str(folder), "--question", "Other?"]) == 2
    assert "explore.html is there already" in capsys.readouterr().err
    assert (out.read_bytes(), len(opened)) == (before, 2)
    assert main(["explore", "--model", str(folder), "--out", "other.html", "--no-open"]) == 0
    assert len(opened) == 2
    (tmp_path / "assumed.json").write_text('{"stitching": "pool"}')
    assumed = ["--assumptions", "assumed.json"]
    assert main(["explore", "--model", str(folder), "--out", "third.html", *assumed]) == 0
    assert "no browser" in capsys.readouterr().err
    parts = Parts((tmp_path / "third.html").read_text(encoding="utf-8")).parts
    assert json.loads(parts["data"])["config"]["tiler"]["stitching"] == "pool"
    assert str(tmp_path) not in (tmp_path / "third.html").read_text(encoding="utf-8")


def test_what_it_refuses(tmp_path, monkeypatch, capsys, folder):
    out = str(tmp_path / "page.html")
    refused = {
        ("--model", "FlashVL/FlashVL-2B-Static"): "is a repository",
        ("--model", str(tmp_path / "none")): "there is no model",
        ("--image", str(tmp_path / "none.png")): "there is no file",
        ("--out", str(tmp_path / "no" / "page.html")): "there is no folder",
    }
    for arguments, reason in refused.items():
        assert main(["explore", "--no-open", "--out", out, *arguments]) == 2
        assert reason in capsys.readouterr().err
    monkeypatch.setattr(explore, "MAX_PARAMETERS", 1000)
    assert main(["explore", "--no-open", "--out", out, "--model", str(folder)]) == 2
    count = sum(one.numel() for one in tiny_model().model.parameters())
    assert f"has {count:,} parameters; a page holds at most 1,000" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == [folder.name]


def test_a_tower_that_is_not_in_the_page_is_refused(monkeypatch):
    monkeypatch.setattr(explore, "TOWERS", ("siglip",))
    with pytest.raises(ArgumentError, match="not aimv2"):
        page(tiny_model(), "x")


def test_notebooks_are_linked_in_a_clone_alone(tmp_path, monkeypatch):
    for given, link in ((explore.NOTEBOOKS.parent, "notebooks"), (tmp_path, None)):
        assert explore._notebooks(given / "page.html") == link
    monkeypatch.setattr(explore, "NOTEBOOKS", tmp_path / "notebooks")
    assert explore._notebooks(tmp_path / "page.html") is None  # there are none


# The parts of the page.


def test_every_file_is_in_the_page_and_every_import_is_there():
    scripts = {f"{one.parent.name}/{one.name}" for one in FOLDER.glob("*/*.js")}
    both = joined("page/page.js") + joined("model/worker.js")
    assert scripts == set(re.findall(r'^modules\["(.*?)"\] = ', both, re.MULTILINE))
    for script in scripts:
        code = (FOLDER / script).read_text(encoding="utf-8")
        assert "</script" not in code
        assert "<!--" not in code
        assert not re.search(r"^import(?! \{[^}]*\} from \"\.)", code, re.MULTILINE), script
        for names, file in re.findall(r'^import \{([^}]*)\} from "(.*?)";', code, re.MULTILINE):
            there = (FOLDER / script).parent.joinpath(file).read_text(encoding="utf-8")
            for name in names.replace(",", " ").split():
                assert re.search(rf"^export .*\b{name}\b", there, re.MULTILINE), (script, name)
                assert len(re.findall(rf"\b{re.escape(name)}\b", code)) > 1, (script, name)


def test_no_line_of_the_parts_is_long():
    for file in FOLDER.glob("*/*"):
        if file.name not in ("words.js", "page.html"):
            long = [line for line in file.read_text("utf-8").splitlines() if len(line) > 100]
            assert not long, (file, long)


@needs_node
def test_a_network_that_the_page_does_not_have_is_refused(tmp_path):
    """Weights that were added in Python, or are missing, do not go by unseen."""
    flash = tiny_model()
    flash.model.compressor.direct = torch.nn.Linear(2, 2, bias=False)
    jobs = [{"picture": None, "question": "What?"}]
    with pytest.raises(
        AssertionError, match=r"does not know the weights compressor\.direct\.weight"
    ):
        run_in_node(tmp_path, "jobs", flash, jobs=jobs)
    flash = tiny_model()
    del flash.model.decoder.layers[1].mlp.up
    with pytest.raises(
        AssertionError, match=r"there are no weights decoder\.layers\.1\.mlp\.up\.weight"
    ):
        run_in_node(tmp_path, "jobs", flash, jobs=jobs)


@needs_node
def test_both_languages_say_everything(tmp_path):
    words = run_in_node(tmp_path, "words")
    english, chinese = words["en"], words["zh"]
    assert english.keys() == chinese.keys()
    assert {f"tiles.mode.{one}" for one in choices_of("stitching")} <= english.keys()
    assert {f"padding.{one}" for one in choices_of("padding")} <= english.keys()
    for key, text in english.items():
        if isinstance(text, str):
            filled = [sorted(set(re.findall(r"\{\w+\}", one))) for one in (text, chinese[key])]
            assert filled[0] == filled[1], key
    assert len(english["tour"]) == len(chinese["tour"]) == 6
    code = "".join(one.read_text(encoding="utf-8") for one in FOLDER.glob("page/*"))
    used = set(re.findall(r'(?:words\(|data-words=)"([\w.]+)"', code))
    assert used <= english.keys()
    dynamic = ("name.", "kind.", "padding.", "notebook.", "tiles.mode.", "tiles.head.", "desk.")
    dynamic += ("without.state.", "tokens.", "busy.")
    unused = {one for one in english.keys() - used if not one.startswith(dynamic)}
    quoted = {one for one in unused if f'"{one}"' in code.replace(f'"{one}":', "")}
    assert unused == quoted
