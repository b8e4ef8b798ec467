"""Which device and number format a model gets, and how memory that runs out is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashvl.device import choose_device, choose_dtype, device_failure_as_error
from flashvl.errors import ArgumentError, DeviceError


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError):
        choose_device(name)


def test_devices_and_dtypes():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (choose_dtype("auto", cpu), choose_dtype("auto", cuda)) == (torch.float32, None)
    assert choose_dtype("bfloat16", cpu) == choose_dtype(torch.bfloat16, cuda) == torch.bfloat16
    for wrong in ("int8", torch.int64, None, 16, "float64", torch.float64, "Tensor", "nonsense"):
        with pytest.raises(ArgumentError, match="dtype must be"):
            choose_dtype(wrong, cpu)


def test_memory_that_runs_out_is_a_device_error():
    with (
        pytest.raises(DeviceError, match="ran out while testing"),
        device_failure_as_error("testing"),
    ):
        torch.empty(2**58, dtype=torch.uint8)
    with pytest.raises(DeviceError), device_failure_as_error("testing"):
        np.ones(2**58, np.uint8)
    with pytest.raises(RuntimeError, match="mat"), device_failure_as_error("testing"):
        torch.ones(2, 3) @ torch.ones(2, 3)
