"""flashvl: the reference implementation of Flash-VL 2B in plain PyTorch.

Letters in shape comments: B batch, S tiles (slices of the picture), N patches of a tile,
T tokens, C channels, D width, H heads, K key/value heads, V vocabulary.
"""

from .config import FlashVLConfig
from .errors import FlashVLError
from .model import FlashVL

__all__ = ["FlashVL", "FlashVLConfig", "FlashVLError"]
