"""Fixtures of the whole folder, and how hypothesis runs."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from tiny import PUBLISHED, tiny_model

from flashvl import FlashVL

# On matrices this small threads only wait for one another.
torch.set_num_threads(1)

# The same examples in every run, and no clock decides.
hypothesis.settings.register_profile(
    "flashvl",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)
hypothesis.settings.load_profile("flashvl")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def flash() -> FlashVL:
    """The tiny Dynamic-ISS model; tests that change a model build their own."""
    return tiny_model()


@pytest.fixture(scope="session", params=list(PUBLISHED))
def any_flash(request) -> FlashVL:
    """Each of the three kinds in turn."""
    return tiny_model(request.param)


@pytest.fixture
def folder(flash, tmp_path):
    """A fresh saved copy of the tiny model, to be damaged."""
    flash.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
