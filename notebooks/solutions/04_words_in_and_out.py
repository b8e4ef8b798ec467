"""Solutions to the exercises of 04_words_in_and_out.ipynb.

Run from the folder of the notebooks: python solutions/04_words_in_and_out.py
"""

import torch
from PIL import Image
from torch import Tensor

from flashvl import FlashVL
from flashvl.errors import MessageError
from flashvl.generation.conversation import common_prefix
from flashvl.nano.world.scenes import scene, scoring_number

torch.set_grad_enabled(False)
flash = FlashVL.from_pretrained("nano", "cpu")
tokenizer = flash.tokenizer
control = set(tokenizer.control.values())
ordinary = [token for token in range(tokenizer.vocabulary) if token not in control]


def exercise_1() -> None:
    """At most n, a token for each byte; at least 1, if there is a token of all n bytes.

    A face has four bytes and nano never met one: four tokens a character. Tokens cost time and
    memory, so whoever pays for a model pays for such texts. flashvl refuses a text with more
    characters than 32 for each token of the context before it is cut at all, and then a prompt
    that leaves no room in the context for an answer.
    """
    faces = "🙂" * 10
    many = len(tokenizer.encode(faces))
    assert many <= len(faces.encode())
    words = [tokenizer.decode([token]) for token in ordinary]
    joined = {one + two for one in words for two in words if len(one + two) == 10}
    few = min(joined, key=lambda text: len(tokenizer.encode(text)))
    print(f"{faces!r}: {many} tokens; {few!r}: {len(tokenizer.encode(few))}")
    assert len(faces) == len(few) == 10
    assert many > 10 * len(tokenizer.encode(few))
    context = flash.config.decoder.context
    for text in (faces * (context // 40), "a" * (33 * context)):
        try:
            flash.chat(None, [{"role": "user", "content": text}])
        except MessageError as error:
            print(error)
        else:
            raise AssertionError("it was not refused")


def exercise_2() -> None:
    """Take a word that is one token, and write it in its bytes.

    A model may write such ids: nothing forbids " st", "ar" in the place of " star". The next round
    encodes the conversation's text anew and gets other ids, while the cache holds what was
    written. flashvl keeps the cache as far as both agree and reads the rest again.
    """
    whole = tokenizer.encode(" star")
    in_bytes = [tokenizer.encode(letter)[0] for letter in " star"]
    again = tokenizer.encode(tokenizer.decode(in_bytes))
    print(f"{in_bytes} is {tokenizer.decode(in_bytes)!r}, which is {again}")
    assert tokenizer.decode(in_bytes) == tokenizer.decode(whole)
    assert again == whole != in_bytes
    before = tokenizer.encode("There is a")
    assert common_prefix([*before, *in_bytes], [*before, *again]) == len(before)


def logits_for(text: str, image: Image.Image) -> Tensor:
    """(V): what follows the prompt."""
    prompt = flash.prepare(image, [{"role": "user", "content": text}])
    return flash.model(*prompt, logits_at=slice(-1, None))[0, -1]


def exercise_3() -> None:
    """The likeliest token's share falls from 1 to 1 / V as the temperature rises, so bisect.

    What makes the sure question half unsure leaves little of the unsure one: one temperature does
    not fit all questions, nor all places of one answer. That is what top-p answers to.
    """
    picture = scene(scoring_number(4, 0)).picture
    sure, unsure = (logits_for(text, picture) for text in ("What is in the picture?", "a"))

    def largest(logits: Tensor, temperature: float) -> float:
        return float((logits / temperature).softmax(-1).max())

    low, high = 0.1, 1000.0
    assert largest(sure, high) < 0.5 < largest(sure, low)
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if largest(sure, middle) > 0.5 else (low, middle)
    print(f"temperature {low:.2f}: {largest(sure, low):.0%} and {largest(unsure, low):.1%}")
    assert abs(largest(sure, low) - 0.5) < 1e-3
    assert largest(unsure, low) < largest(unsure, 1.0)


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
