"""What passes between the parts of a network while it runs, by the parts' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

INPUT = " input"  # after a part's name: what goes into it, not what comes out


@contextmanager
def recorded(whole: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs (or inputs, see `INPUT`) of a module's named parts while the context lasts.

    Of a part that runs more than once the last.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    def watch(name: str) -> RemovableHandle:
        part = whole.get_submodule(name.removesuffix(INPUT))
        if name.endswith(INPUT):
            return part.register_forward_pre_hook(lambda _, inputs: keep(name, inputs))
        return part.register_forward_hook(lambda _, inputs, output: keep(name, output))

    handles = [watch(name) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
