"""Solutions to the exercises of 05_decoder.ipynb.

Run from the folder of the notebooks: python solutions/05_decoder.py
"""

import torch
from PIL import Image, ImageDraw

from flashvl import FlashVL
from flashvl.model.cache import KVCache

torch.set_grad_enabled(False)

flash = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
picture = Image.new("RGB", (240, 120), "lightgray")
draw = ImageDraw.Draw(picture)
draw.ellipse((25, 30, 85, 90), fill="red")
draw.rectangle((150, 35, 205, 90), fill="blue")
messages = [{"role": "user", "content": "What is in the picture?"}]
prompt = flash.prepare(picture, messages)
tokens = prompt.input_ids.shape[1]


def exercise_1() -> None:
    """Moving all positions turns queries and keys by the same angle: scores and logits stay.

    Doubling the positions doubles the distances, and the logits change.
    """

    def last_logits(positions: torch.Tensor) -> torch.Tensor:
        return flash.model(*prompt, positions=positions[None])[:, -1]  # (1, V)

    plain = torch.arange(tokens)
    torch.testing.assert_close(last_logits(plain + 100), last_logits(plain), rtol=1e-2, atol=1e-2)
    moved = (last_logits(plain + 100) - last_logits(plain)).abs().max()
    changed = (last_logits(2 * plain) - last_logits(plain)).abs().max()
    print(f"moved: logits differ by {moved:.1e} at most; doubled: by {changed:.1e}")
    assert changed > 10 * moved


def exercise_2() -> None:
    """The prompts agree up to the question, the whole picture included.

    Several tokens follow several in the cache, so the mask is the middle one of the three that
    are drawn in the notebook.
    """
    other = flash.prepare(picture, [{"role": "user", "content": "How many objects are there?"}])
    pairs = zip(prompt.input_ids[0].tolist(), other.input_ids[0].tolist())
    kept = next(place for place, (one, two) in enumerate(pairs) if one != two)

    cache = KVCache(flash.config.decoder, tokens)
    flash.model(*prompt, cache=cache)
    cache.roll_back(kept)
    cache.reserve(other.input_ids.shape[1])
    reused = flash.model(other.input_ids[:, kept:], cache=cache)[:, -1]  # (1, V)
    fresh = flash.model(*other)[:, -1]  # (1, V)
    torch.testing.assert_close(reused, fresh, rtol=1e-3, atol=1e-3)
    print(f"{kept} of {other.input_ids.shape[1]} tokens were not read again")
    assert kept > (prompt.input_ids < 0).sum()


def is_greedy(answer_ids: list[int]) -> bool:
    """Whether the answer is the greedy one, by one pass over prompt and answer.

    The logits at the prompt's last position must choose the answer's first token, those at the
    first its second, and so on; those at the last must choose a stop token. The mask keeps each
    choice from seeing what follows it. Speculative decoding rests on this: a large model checks
    in one cheap pass what a small one has guessed.
    """
    whole = torch.cat((prompt.input_ids, torch.tensor([answer_ids])), dim=1)  # (1, T + length)
    logits = flash.model(whole, prompt.pixels, prompt.grids)[0, tokens - 1 :]  # (length + 1, V)
    chosen = logits.argmax(dim=-1).tolist()
    return chosen[:-1] == answer_ids and chosen[-1] in flash.stop_ids


def exercise_3() -> None:
    answer = flash.tokenizer.encode(flash.chat(picture, messages))
    assert is_greedy(answer)
    assert not is_greedy(answer[:-1])  # cut short
    assert not is_greedy(answer[::-1] + answer)  # other words


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
