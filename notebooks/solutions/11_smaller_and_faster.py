"""Solutions to the exercises of 11_smaller_and_faster.ipynb.

Run from the folder of the notebooks: python solutions/11_smaller_and_faster.py
"""

import numpy as np
import torch

from flashvl import FlashVLConfig
from flashvl.checkpoint.hub import published_models
from flashvl.fast.int4 import GROUP, to_int4, widened
from flashvl.fast.int8 import to_int8
from flashvl.model.cache import KVCache


def exercise_1() -> None:
    """2 operations for each weight and answer, 2 bytes for each weight: n answers, n a byte.

    So from 989 / 3.35 = 296 answers on, and from half as many in int8, whose bytes are half. The
    cache is each answer's own: its bytes grow with the answers as the operations do. With a large
    picture they alone take longer than the arithmetic, and no number of answers changes that.
    """
    operations, bandwidth = 989e12, 3.35e12
    ridge = operations / bandwidth
    print(f"bfloat16 from {ridge:.0f} answers on, int8 from {ridge / 2:.0f}")
    assert 290 < ridge < 300
    published = published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"]
    config = FlashVLConfig.from_dict(published)
    one = KVCache(config.decoder, 1, device="meta", dtype=torch.bfloat16)
    tokens = (config.tiler.max_tiles + 1) * config.tokens_per_tile
    read = (one.keys.nbytes + one.values.nbytes) * tokens / bandwidth  # seconds for an answer
    weights = 1.5e9  # of the decoder that are used for each token
    reckoned = 2 * weights / operations
    print(f"of each answer's token: cache {1e6 * read:.1f} µs, arithmetic {1e6 * reckoned:.1f} µs")
    assert read > reckoned


def exercise_2() -> None:
    """The scale is stretched to the outlier, and the others share a few of the numbers.

    In int8 the whole row suffers, in int4 only the outlier's group. Remedies: smaller groups, an
    outlier kept apart in bfloat16 (arXiv 2208.07339), or scales moved into the activations.
    """
    weight = torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))
    spoiled = weight.clone()
    spoiled[0, 5] = 100
    others = torch.arange(1024) != 5
    far = torch.arange(1024) >= GROUP  # in other groups

    def error(form: torch.Tensor, places: torch.Tensor) -> float:
        return float((form - spoiled)[0, places].norm() / spoiled[0, places].norm())

    numbers, scales = to_int8(spoiled)
    int8, int4 = numbers.float() * scales[:, None], widened(to_int4(spoiled))
    before, its_scales = to_int8(weight)
    plain = float((before.float() * its_scales[:, None] - weight).norm() / weight.norm())
    print(f"int8: without the outlier {plain:.1%}, with it {error(int8, others):.0%}")
    print(f"int4: its group {error(int4, others & ~far):.0%}, the others {error(int4, far):.1%}")
    assert error(int8, others) > 10 * plain
    assert error(int4, others & ~far) > 3 * error(int4, far)


def tokens_a_pass(a: float, k: int) -> float:
    """One token and each proposal that is right with all before it: 1 + a + a² + ... + a^k."""
    return (1 - a ** (k + 1)) / (1 - a)


def exercise_3() -> None:
    """A pass and k steps cost 1 + k / 20; the best k gives the most tokens for that."""
    a, random = 0.8, np.random.default_rng(0)
    for k in (1, 4, 8):
        right = random.random((100_000, k)) < a
        simulated = 1 + np.cumprod(right, axis=1).sum(axis=1).mean()
        print(f"k = {k}: {tokens_a_pass(a, k):.3f} tokens, simulated {simulated:.3f}")
        assert abs(simulated - tokens_a_pass(a, k)) < 0.05
    gains = {k: tokens_a_pass(a, k) / (1 + k / 20) for k in range(1, 30)}
    best = max(gains, key=gains.__getitem__)
    print(f"the best k is {best}: {gains[best]:.2f} times as many tokens")
    assert gains[best] > 2
    assert gains[best] > gains[29]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
