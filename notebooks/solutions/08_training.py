"""Solutions to the exercises of 08_training.ipynb.

Run from the folder of the notebooks: python solutions/08_training.py
"""

import math
from collections import Counter

import torch
import torch.nn.functional as F

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.checkpoint.hub import published_models
from flashvl.nano.world.scenes import scene, scoring_number

SMALL = {"sides": (80, 118), "things": (1, 1), "digits": 0, "max_aspect_ratio": 1.0}


def exercise_1() -> None:
    """There is always one object, so nearly every counting question is answered by "1".

    Only where the question names what is not there is it "0". A score proves something by what
    it has beyond the blind answer: of *self* the blind answer is right three times in four, for
    only thanks are answered otherwise; of colors it is right about once in eight.
    """
    validation = [scene(scoring_number(0, index), **SMALL) for index in range(100)]
    test = [scene(scoring_number(1, index), **SMALL) for index in range(200)]
    seen: dict[tuple[str, str], Counter] = {}
    asked, blind = Counter(), Counter()
    for one in validation:
        for q in one.questions:
            seen.setdefault((q.kind, q.language), Counter())[q.answer] += 1
    for one in test:
        for q in one.questions:
            asked[q.kind] += 1
            blind[q.kind] += q.answer == seen[q.kind, q.language].most_common(1)[0][0]
    for kind in asked:
        print(f"{kind:12} blind {blind[kind] / asked[kind]:6.1%}")
    assert blind["self"] > 0.7 * asked["self"]
    assert blind["count"] > asked["count"] / 2
    assert blind["color"] < asked["color"] / 4


def compressor_parameters(tower: int, hidden: int, decoder: int) -> int:
    """A LayerNorm (a scale and a shift), then three linear layers with biases."""
    expand, middle, output = (tower + 1) * hidden, (hidden + 1) * hidden, (hidden + 1) * decoder
    return 2 * tower + expand + middle + output


def exercise_2() -> None:
    """The middle layer grows with the square: in the 2B it holds most of the compressor."""
    nano = FlashVL.from_pretrained("nano").config
    published = published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"]
    for name, config in (("nano", nano), ("the 2B", FlashVLConfig.from_dict(published))):
        with torch.device("meta"):
            compressor = FlashVLModel(config).compressor
        hidden = config.compressor.hidden_width
        widths = config.compressor_input_width, hidden, config.decoder.width
        total = compressor_parameters(*widths)
        assert total == sum(p.numel() for p in compressor.parameters())
        print(f"{name:7}{total:>12,}, {(hidden + 1) * hidden / total:.0%} in the middle layer")
    assert (hidden + 1) * hidden > total / 2


def exercise_3() -> None:
    """-log(1 / V) = log V for every label, so the mean is log V: 6.64 for nano, 11.93 for the 2B.

    Random weights are not equal logits. Whatever they favor is right only once in V times, and
    the larger the logits, the dearer each confident mistake: the loss begins above log V.
    """
    labels = torch.randint(768, (50,), generator=torch.Generator().manual_seed(0))
    equal = F.cross_entropy(torch.zeros(50, 768), labels).item()
    assert math.isclose(equal, math.log(768), rel_tol=1e-6)
    for scale in (0.1, 1, 3):
        logits = scale * torch.randn(50, 768, generator=torch.Generator().manual_seed(1))
        loss = F.cross_entropy(logits, labels).item()
        print(f"logits of deviation {scale}: loss {loss:.2f}, of equal ones {equal:.2f}")
    assert loss > equal + 1
    print(f"log V of the 2B: {math.log(151936):.2f}")


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
