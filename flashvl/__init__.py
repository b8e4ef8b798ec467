"""flashvl: the reference implementation of Flash-VL 2B in plain PyTorch.

Letters in shape comments: B batch, S tiles (slices of the picture), N patches of a tile,
T tokens, C channels, D width, H heads, K key/value heads, V vocabulary.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat import FlashVL
    from .config import FlashVLConfig
    from .errors import FlashVLError
    from .model.network import FlashVLModel

__all__ = ["FlashVL", "FlashVLConfig", "FlashVLError", "FlashVLModel"]

# Imported when they are asked for, so that the command line's help does not wait for torch.
_HOMES = {
    "FlashVL": ".chat",
    "FlashVLConfig": ".config",
    "FlashVLError": ".errors",
    "FlashVLModel": ".model.network",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
