"""Solutions to the exercises of 09_teach.ipynb.

Run from the folder of the notebooks: python solutions/09_teach.py
"""

import torch

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.checkpoint.adapter import DECODER_LAYERS, matching
from flashvl.checkpoint.hub import published_models
from flashvl.model.lora import LoRA, adaptable, add_loras, loras


def exercise_1() -> None:
    """A map of `width` x `inputs` gets rank * (width + inputs) numbers.

    Three numbers of 4 bytes for each that learns: the LoRA needs a fraction of a gigabyte, the
    decoder some 21 GB, and that is beside the weights themselves and the activations.
    """
    published = published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"]
    with torch.device("meta"):
        model = FlashVLModel(FlashVLConfig.from_dict(published))
    rank, maps = 16, adaptable(model)
    names = matching(model, DECODER_LAYERS)
    small = sum(rank * sum(maps[name].weight.shape) for name in names)
    large = sum(one.numel() for one in model.decoder.parameters())
    for what, count in (("LoRA", small), ("decoder", large)):
        print(f"{what:8} {count:>13,} numbers, {3 * 4 * count / 1e9:6.2f} GB to train them")
    assert small < 0.02 * large
    assert 3 * 4 * large > 16e9


def exercise_2() -> None:
    """What is added is B A x. Its derivative by A has the factor B, which is zero.

    So only B moves at the first step; from the second on both do. Were both zero, both gradients
    would be zero for ever. Were neither, training would begin at another model than the old one.
    """
    flash = FlashVL.from_pretrained("nano", "cpu")
    add_loras(flash.model, matching(flash.model, DECODER_LAYERS), 8, 16.0)
    turns = [("user", "Who are you?"), ("assistant", "a red star")]
    ids, labels, _, _ = flash.training_example(
        None, [{"role": role, "content": content} for role, content in turns]
    )

    def take_gradients() -> None:
        flash.model.zero_grad()
        logits = flash.model(ids)[0, :-1]  # (T - 1, V)
        torch.nn.functional.cross_entropy(logits, labels[0, 1:]).backward()

    def largest(letter: str) -> float:
        gradients = [getattr(one, letter).grad for _, one in loras(flash.model)]
        return max(float(one.abs().max()) for one in gradients)

    take_gradients()
    print(f"largest gradients: of a {largest('a'):.1e}, of b {largest('b'):.1e}")
    assert largest("a") == 0 < largest("b")
    for _, one in loras(flash.model):  # a step
        one.b.data -= 0.1 * one.b.grad
    take_gradients()
    assert largest("a") > 0
    for _, one in loras(flash.model):
        one.a.data.zero_()
        one.b.data.zero_()
    take_gradients()
    assert largest("a") == largest("b") == 0


def exercise_3() -> None:
    """(w + u) - u rounds twice, so it need not be w. In bfloat16 it is off by far more.

    The rounding is that of the weight, so that a small update loses more of itself than a large
    one, and each merge adds to it. Merge from the old weights each time, in float32, and round
    once at the end, as `merge_loras` does.
    """
    flash = FlashVL.from_pretrained("nano", "cpu")
    weight = flash.model.decoder.layers[0].attention.query.weight.detach()
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
    b = 0.02 * torch.randn(weight.shape[0], 8, generator=generator)
    update = LoRA(torch.nn.Identity(), a, b, 16.0).scale * b @ a
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        old, added = weight.to(dtype), update.to(dtype)
        back = (old + added) - added
        error = (back - old).float().norm() / update.norm()
        print(f"{dtype}: bitwise {torch.equal(back, old)}, error {error:.1e} of the update")
        errors[dtype] = float(error)
        assert not torch.equal(back, old)
    assert errors[torch.float32] < 1e-4
    assert errors[torch.bfloat16] > 100 * errors[torch.float32]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
