"""A config.json gives a config or a `ConfigError` in one line, and the config gives it back."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import PUBLISHED, tiny_published

from flashvl import FlashVLConfig, FlashVLModel
from flashvl.assumptions import FIELDS, alternatives_of
from flashvl.checkpoint.hub import published_models
from flashvl.errors import ConfigError
from flashvl.reading import MAX_INTEGER

NAN, INFINITY = float("nan"), float("inf")


def read(published) -> FlashVLConfig:
    return FlashVLConfig.from_dict(published)


def changed(path: str, value, kind: str = "iss") -> dict:
    """A good config.json with one value replaced; `path` like "llm_config.hidden_size"."""
    published = tiny_published(kind)
    *sections, key = path.split(".")
    section = published
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return published


def test_the_published_models_have_the_numbers_of_the_paper():
    configs = {name: read(entry["config"]) for name, entry in published_models().items()}
    iss = configs["FlashVL/FlashVL-2B-Dynamic-ISS"]
    assert (iss.vision.patches, iss.stitched_margin, iss.tokens_per_tile) == (1024, 4, 576)
    assert (iss.tiler.margin, iss.tiler.core_size, iss.tiler.max_tiles) == (56, 336, 6)
    assert (iss.compressor_input_width, iss.compressor.hidden_width) == (1536, 7168)
    dynamic = configs["FlashVL/FlashVL-2B-Dynamic"]
    assert (dynamic.stitched_margin, dynamic.tokens_per_tile) == (0, 256)
    assert (dynamic.compressor_input_width, dynamic.tiler.max_tiles) == (6144, 12)
    for name in ("FlashVL/FlashVL-2B-Static", "FlashVL/FlashVL-2B-Static-GRPO"):
        static = configs[name]
        assert (static.compressor_input_width, static.tokens_per_tile) == (4608, 256)
        assert (static.tiler.max_tiles, static.tiler.mean) == (1, (0.5, 0.5, 0.5))
        assert static.vision.pooling_head
    assert {config.decoder.head_width for config in configs.values()} == {128}
    assert not any(config.decoder.tied_head for config in configs.values())


@pytest.mark.parametrize("kind", PUBLISHED)
def test_to_dict_and_from_dict_are_inverse(kind):
    assumptions = {"max_tiles": 3, "system": "答", "slice_markers": ["a", "b"], "thumbnail": False}
    assumptions |= {"grid": "slices", "tile_order": "columns", "image_place": "text"}
    published = tiny_published(kind, **assumptions)
    published["llm_config"]["use_cache"] = True
    published["auto_map"] = {"AutoModel": "code.py"}
    config = read(published)
    written = json.loads(json.dumps(config.to_dict()))
    assert read(written) == config
    assert written["auto_map"] == {"AutoModel": "code.py"}
    assert written["llm_config"]["use_cache"] is True
    assert written["llm_config"]["hidden_act"] == "silu"
    assert written["assumptions"]["max_tiles"] == 3


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_changed_config_is_written_as_changed(kind):
    published = tiny_published(kind)
    if kind == "static":  # a whole SigLIP config holds the tower's
        published["vision_config"] = {"vision_config": published["vision_config"]}
    published["llm_config"]["rope_parameters"] = {"rope_theta": 5.0, "rope_type": "default"}
    config = read(published)
    assert config.decoder.rope_theta == 5.0
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, layers=5),
        decoder=dataclasses.replace(config.decoder, rope_theta=7.0),
    )
    assert read(config.to_dict()) == config


def test_the_file_that_was_read_is_not_changed_and_not_shared():
    published = tiny_published()
    before = copy.deepcopy(published)
    config = read(published)
    config.to_dict()["vision_config"]["hidden_size"] = 1
    assert published == before
    published["vision_config"]["note"] = "later"
    assert "note" not in config.to_dict()["vision_config"]


def test_the_default_of_a_field_is_its_first_alternative():
    assert set(read(tiny_published()).assumptions) == set(FIELDS)
    for kind in PUBLISHED:
        stated = read(tiny_published(kind)).assumptions
        for name in FIELDS:
            if name not in ("max_tiles", "tensor_prefix"):
                assert stated[name] == FIELDS[name].alternatives[0].value, name


def test_every_alternative_can_be_stated_and_survives():
    for name in FIELDS:
        for one in alternatives_of(name, layers=2):
            config = read(tiny_published(**{name: one.value}))
            assert config.assumptions[name] == one.value
            assert read(json.loads(json.dumps(config.to_dict()))) == config
            assert read(tiny_published()).with_assumptions({name: one.value}) == config
    assert [one.value for one in alternatives_of("feature_layer", 24)] == [-1, 23, 22]
    assert [one.value for one in alternatives_of("feature_layer", 1)] == [-1, 0]


@pytest.mark.parametrize(
    ("stated", "fields"),
    [
        ({"thumbnail": True}, {"thumbnail": "last"}),
        ({"thumbnail": False}, {"thumbnail": "none"}),
        ({"slice_markers": None}, {"slice_markers": "none"}),
        ({"slice_markers": ["a", "b"]}, {"slice_markers": ("a", "b")}),
        ({"feature_layer": -1, "padding": "edge"}, {"feature_layer": -1, "padding": "edge"}),
        ({"system": ""}, {"system": ""}),
        ({"system": False}, {"system": None}),
    ],
)
def test_what_older_configs_state_means_what_it_meant(stated, fields):
    config = read(tiny_published(**stated))
    for name, value in fields.items():
        assert getattr(getattr(config, FIELDS[name].part), name) == value


def test_other_assumptions_leave_all_else_as_it_is():
    preprocessor = {"resample": 1, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    config = read(tiny_published(stitching="mean")).with_preprocessor(preprocessor)
    assert config.with_assumptions({}) == config
    other = config.with_assumptions({"padding": "edge"})
    assert other.tiler == dataclasses.replace(config.tiler, padding="edge")
    with pytest.raises(ConfigError, match="unknown key"):
        config.with_assumptions({"tiles": 4})


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(tiny_published()).decoder.width = 5


def test_missing_keys_have_the_defaults_of_the_library_classes():
    """A file written by transformers leaves out what equals its class's default."""
    config = read(
        {
            "model_type": "FlashVLStaticConfig",
            "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "image_size": 512},
            "llm_config": {"hidden_size": 1536, "num_attention_heads": 12},
            "intermediate_size": 7168,
        }
    )
    assert (config.vision.patch_size, config.vision.eps, config.vision.layers) == (16, 1e-6, 12)
    assert (config.decoder.vocabulary, config.decoder.context) == (151936, 32768)
    assert (config.decoder.key_value_heads, config.decoder.rope_theta) == (12, 10000.0)
    assert (config.tokens_per_tile, config.compressor.shuffle) == (256, 2)


def test_the_token_number_decides_what_is_cut_off():
    assert read(changed("image_token_num", 16, "iss")).stitched_margin == 2
    assert read(changed("image_token_num", 64, "iss")).stitched_margin == 0
    assert read(changed("image_token_num", 4, "dynamic")).compressor.shuffle == 4
    assert read(changed("image_token_num", 64, "dynamic")).compressor.shuffle == 1
    for kind in PUBLISHED:
        published = tiny_published(kind)
        del published["image_token_num"]
        assert read(published) == read(tiny_published(kind))


def test_without_stitching_the_tower_sees_the_cores_alone():
    config = read(tiny_published("iss", stitching="none"))
    assert (config.stitched_margin, config.tiler.core_size, config.tokens_per_tile) == (0, 12, 36)


def test_the_preprocessor_file_replaces_the_kinds_numbers():
    config = read(tiny_published())
    preprocessor = {"resample": 2, "image_mean": [0, 0.5, 1], "image_std": [1, 2, 3], "size": 9}
    tiler = config.with_preprocessor(preprocessor).tiler
    assert (tiler.resample, tiler.mean, tiler.std) == (2, (0.0, 0.5, 1.0), (1.0, 2.0, 3.0))
    assert config.with_preprocessor({}) == config
    for broken in (
        {"resample": 9},
        {"image_mean": [0.5]},
        {"image_mean": "gray"},
        {"image_mean": [NAN, 0, 0]},
        {"image_mean": [10**400, 0, 0]},
        {"image_std": [0, 1, 1]},
        {"image_std": [INFINITY, 1, 1]},
        [],
    ):
        with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
            config.with_preprocessor(broken)


REFUSED = [
    ("model_type", "LlamaConfig", "LlamaConfig"),
    ("model_type", None, "model_type"),
    ("model_type", ["FlashVLStaticConfig"], "model_type"),
    ("vision_config", None, "vision_config"),
    ("vision_config", [], "vision_config"),
    ("llm_config", "qwen2", "llm_config"),
    ("intermediate_size", None, "intermediate_size"),
    ("intermediate_size", 0, "intermediate_size"),
    ("image_token_num", 37, "37"),
    ("image_token_num", 49, "8 x 8 patches"),
    ("image_token_num", 100, "100"),
    ("vision_config.hidden_size", "16", "hidden_size"),
    ("vision_config.hidden_size", 16.0, "hidden_size"),
    ("vision_config.hidden_size", True, "hidden_size"),
    ("vision_config.hidden_size", -16, "-16"),
    ("vision_config.hidden_size", 10**30, "hidden_size"),
    ("vision_config.num_attention_heads", 3, "multiple"),
    ("vision_config.num_channels", 4, "num_channels"),
    ("vision_config.image_size", 17, "multiple"),
    ("vision_config.patch_size", 32, "multiple"),
    ("vision_config.rms_norm_eps", 0, "rms_norm_eps"),
    ("vision_config.rms_norm_eps", NAN, "nan"),
    ("vision_config.rms_norm_eps", INFINITY, "inf"),
    ("vision_config.use_bias", True, "use_bias"),
    ("llm_config.rms_norm_eps", "small", "small"),
    ("llm_config.hidden_act", "gelu", "gelu"),
    ("llm_config.use_sliding_window", True, "use_sliding_window"),
    ("llm_config.rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_scaling"),
    ("llm_config.rope_parameters", {"rope_type": "yarn"}, "yarn"),
    ("llm_config.rope_parameters", [], "rope_parameters"),
    ("llm_config.rope_theta", 10**400, "rope_theta"),
    ("llm_config.num_attention_heads", 3, "multiple"),
    ("llm_config.num_key_value_heads", 3, "multiple"),
    ("llm_config.head_dim", 5, "5"),
    ("llm_config.head_dim", 10**7, "head_dim"),
    ("llm_config.num_hidden_layers", 10**6, "num_hidden_layers"),
    ("llm_config.tie_word_embeddings", "no", "tie_word_embeddings"),
    ("assumptions", [], "assumptions"),
    ("assumptions.tiles", 4, "tiles"),
    ("assumptions.max_tiles", 0, "max_tiles"),
    ("assumptions.max_tiles", 10**6, "max_tiles"),
    ("assumptions.stitching", "glue", "trim, mean, none, pool"),
    ("assumptions.grid", "square", "aspect, resolution, slices"),
    ("assumptions.thumbnail", "middle", "last, first, none"),
    ("assumptions.thumbnail", [], "last, first, none"),
    ("assumptions.tile_order", "spiral", "spiral"),
    ("assumptions.image_place", {"line": 1}, "line, text"),
    ("assumptions.slice_markers", "<|im_end|>", "none, tile, picture"),
    ("assumptions.slice_markers", True, "slice_markers"),
    ("assumptions.system", True, "system"),
    ("assumptions.padding", ["edge"], "constant, edge"),
    ("assumptions.padding", 0, "padding"),
    ("assumptions.thumbnail", 1, "thumbnail"),
    ("assumptions.token_order", "spiral", "spiral"),
    ("assumptions.feature_layer", 2, "2 layers"),
    ("assumptions.feature_layer", -2, "feature_layer"),
    ("assumptions.system", 5, "system"),
    ("assumptions.system", "\ud800", "system"),
    ("assumptions.slice_markers", ["one"], "slice_markers"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_this_code_does_not_build_is_refused(path, value, words):
    with pytest.raises(ConfigError) as refusal:
        read(changed(path, value))
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_null_is_the_same_as_nothing():
    for path in ("assumptions", "assumptions.tensor_prefix", "llm_config.rope_scaling"):
        assert read(changed(path, None)) == read(tiny_published())


@pytest.mark.parametrize("path", ["model_type", "llm_config.hidden_size", "unknown"])
def test_what_is_nested_without_end_is_refused(path):
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(ConfigError, match="too deeply"):
        read(changed(path, deep))


@pytest.mark.parametrize("section", ["model_type", "vision_config", "llm_config"])
def test_a_missing_section_is_named(section):
    published = tiny_published()
    del published[section]
    with pytest.raises(ConfigError, match=section):
        read(published)


@pytest.mark.parametrize("nothing", [None, [], "{}", 5])
def test_what_is_no_object_is_refused(nothing):
    with pytest.raises(ConfigError, match="JSON object"):
        read(nothing)


def test_the_widest_model_that_a_config_may_describe_can_be_built_on_the_meta_device():
    """The bounds keep every tensor's size within 64 bits, so that no number of a file crashes."""
    published = tiny_published("dynamic")
    published["vision_config"] |= {"hidden_size": MAX_INTEGER, "intermediate_size": MAX_INTEGER}
    published["llm_config"] |= {
        "vocab_size": MAX_INTEGER,
        "hidden_size": MAX_INTEGER,
        "intermediate_size": MAX_INTEGER,
        "num_attention_heads": MAX_INTEGER,
        "num_key_value_heads": MAX_INTEGER,
        "head_dim": 10_000,
    }
    published |= {"intermediate_size": MAX_INTEGER, "image_token_num": 64}
    with torch.device("meta"):
        model = FlashVLModel(read(published))
    assert model.decoder.layers[0].attention.query.weight.shape == (
        10_000 * MAX_INTEGER,
        MAX_INTEGER,
    )
    with pytest.raises(ConfigError, match="image_token_num"):
        read(published | {"image_token_num": 16})


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 8, 16, 10**6, 10**7, 10**25])
    | st.floats()
    | st.text(max_size=5)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = [
    *(f"vision_config.{key}" for key in PUBLISHED["static"]["vision_config"]),
    *(f"llm_config.{key}" for key in [*PUBLISHED["iss"]["llm_config"], "rope_parameters"]),
    *("vision_config", "llm_config", "model_type", "intermediate_size", "image_token_num"),
    *("assumptions", "assumptions.max_tiles", "assumptions.feature_layer", "assumptions.stitching"),
]


def config_or_error(published) -> None:
    """Also builds what is accepted, on the meta device, and writes it again."""
    try:
        config = read(published)
    except ConfigError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        return
    assert read(json.loads(json.dumps(config.to_dict()))) == config
    if config.vision.layers + config.decoder.layers < 10:
        with torch.device("meta"):
            FlashVLModel(config)


@given(anything)
def test_random_json_gives_a_config_error(values):
    with pytest.raises(ConfigError):
        read(values)


@pytest.mark.parametrize("kind", PUBLISHED)
@given(changes=st.dictionaries(st.sampled_from(KEYS), anything | scalars, min_size=1, max_size=3))
def test_mutated_configs_give_a_config_or_a_config_error(kind, changes):
    published = tiny_published(kind)
    for path, value in sorted(changes.items(), key=lambda change: -change[0].count(".")):
        *sections, key = path.split(".")
        section = published
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    config_or_error(published)
