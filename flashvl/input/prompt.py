"""Messages become token ids: ChatML, with the picture's places in the first user turn.

Source: the LLaVA-NeXT template for Qwen, and the ids -200 / -201 of the published code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from ..assumptions import PLACEHOLDERS
from ..config import TILE_NEXT, TILE_START, PromptConfig
from ..errors import MessageError
from ..reading import lone_surrogate, one_line, shown
from .tokenizer import Tokenizer

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
IGNORED = -100  # the label of what is not to be predicted; torch's cross-entropy passes over it

# A longer text is refused before it is cut into tokens. Words have some 5 for a token, a line of
# dashes some 30.
MAX_CHARACTERS_PER_TOKEN = 32

Message = Mapping[str, str]


def encode_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    config: PromptConfig,
    tiles: int = 0,
    tokens_per_tile: int = 0,
    context: int | None = None,
) -> list[int]:
    """A conversation -> ids of the prompt, up to where the assistant's answer begins.

    With `tiles` > 0 the picture's places stand in the first user turn, before its text and a line
    break, which the config's `image_place` "text" leaves out. With `context`, tokens that a model
    reads at most, no more messages than that are read, and no more characters than
    `MAX_CHARACTERS_PER_TOKEN` for each. Raises `MessageError`.
    """
    turns = read_messages(messages, context, "user")
    read = _encode_turns(turns, tokenizer, config, tiles, tokens_per_tile, context)
    ids = list(chain.from_iterable(turn_ids for _, turn_ids in read))
    return ids + _before_answer(tokenizer)


def encode_example(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    config: PromptConfig,
    tiles: int = 0,
    tokens_per_tile: int = 0,
    context: int | None = None,
) -> list[tuple[list[int], list[int]]]:
    """A conversation with its answers -> rows to learn from: ids (T) and labels (T) of each.

    A label is the id itself where it is to be predicted: in an answer and the `<|im_end|>` after
    it; elsewhere it is `IGNORED`. What stands before an answer is what `encode_messages` gives for
    the conversation up to there, so that training and answering see the same. One row therefore
    holds all answers, but for those that begin with a line break and are followed by others: the
    model reads such an answer in other tokens than it wrote it in, and what follows is another
    row. Raises `MessageError` as `encode_messages` does, and for an answer without a question.
    """
    turns = read_messages(messages, context, "assistant")
    read = list(_encode_turns(turns, tokenizer, config, tiles, tokens_per_tile, context))
    opening, end = _before_answer(tokenizer), tokenizer.control_id(TURN_END)
    rows = []
    ids: list[int] = []
    labels: list[int] = []
    for number, (turn, turn_ids) in enumerate(read, 1):
        learned = [IGNORED] * len(turn_ids)
        if turn["role"] == "assistant":
            answer = [*tokenizer.encode(turn["content"]), end]
            written = opening + answer
            stays = turn_ids[: len(written)] == written
            if number == len(read) or not stays:
                rows.append((ids + written, labels + [IGNORED] * len(opening) + answer))
            if stays:
                learned[len(opening) : len(written)] = answer
            else:
                labels = [IGNORED] * len(ids)
        ids += turn_ids
        labels += learned
    return rows


def _encode_turns(
    turns: list[dict[str, str]],
    tokenizer: Tokenizer,
    config: PromptConfig,
    tiles: int,
    tokens_per_tile: int,
    context: int | None,
) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Each turn of a conversation, a system turn first, and its ids up to the next turn."""
    if turns[0]["role"] != "system" and config.system is not None:
        turns = [{"role": "system", "content": config.system}, *turns]
    if context is not None:
        _check_length(turns, context)
    start, end = tokenizer.control_id(TURN_START), tokenizer.control_id(TURN_END)
    line_break = tokenizer.encode("\n")
    places = picture_ids(tiles, tokens_per_tile, tokenizer, config.slice_markers)
    for turn in turns:
        # Role and text are encoded together, so that a text's first line break merges as published.
        text = f"{turn['role']}\n{turn['content']}"
        before = [start]
        if turn["role"] == "user" and places:
            before += tokenizer.encode("user\n") + places
            between = "\n" if config.image_place == "line" else ""
            places, text = [], between + turn["content"]
        yield turn, [*before, *tokenizer.encode(text), end, *line_break]


def _before_answer(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.control_id(TURN_START), *tokenizer.encode("assistant\n")]


def picture_ids(
    tiles: int, tokens_per_tile: int, tokenizer: Tokenizer, markers: str | tuple[str, str]
) -> list[int]:
    """The ids that stand for a picture: for each tile -200 and then -201 for all its tokens.

    `markers` as in `PromptConfig`: the placeholders around each tile or the whole picture, two
    other control tokens around each tile, or "none".
    """
    tile = [TILE_START] + [TILE_NEXT] * (tokens_per_tile - 1)
    if markers == "none" or tiles == 0:
        return tile * tiles
    names = PLACEHOLDERS if isinstance(markers, str) else markers
    first, last = (tokenizer.control_id(name) for name in names)
    if markers == "picture":
        return [first, *tile * tiles, last]
    return [first, *tile, last] * tiles


def read_messages(
    messages: Any, context: int | None = None, last: str = "user"
) -> list[dict[str, str]]:
    """A conversation that ends with a turn of the role `last`, in plain dicts of plain texts.

    If that is the assistant's, each answer must follow a user turn. A text may come as a member of
    an enumeration, which Python writes by its name. Raises `MessageError`, also for more than
    `context` messages.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(
            'messages must be a list of {"role", "content"}, such as '
            '[{"role": "user", "content": "What is this?"}]'
        )
    try:
        if context is not None and len(messages) > context:
            raise MessageError(
                f"there are {len(messages)} messages, the model's context is {context} tokens; "
                "use a shorter conversation"
            )
        turns = [_read_message(number, message) for number, message in enumerate(messages, 1)]
    except MessageError:
        raise
    except Exception as error:  # of a class of the caller's
        raise MessageError(f"the messages cannot be read: {one_line(error)}") from error
    if not turns:
        raise MessageError("there are no messages; give at least one user turn")
    if turns[-1]["role"] != last:
        if last == "user":
            raise MessageError("the last message must be a user turn, for the model to answer it")
        raise MessageError("the last message must be an assistant turn, for it to be learned")
    for number, (before, turn) in enumerate(pairwise([{}, *turns]), 1):
        answers = turn["role"] == "assistant" and last == "assistant"
        if answers and before.get("role") != "user":
            raise MessageError(f"message {number} is an answer, but no question stands before it")
    return turns


def _read_message(number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise MessageError(f'message {number} must have a "role" and a "content"')
    role, content = _plain(message["role"]), _plain(message["content"])
    if role not in ROLES:
        raise MessageError(f"message {number} has the role {shown(role)}; use {', '.join(ROLES)}")
    if role == "system" and number > 1:
        raise MessageError(f"message {number} is a system turn; only the first may be one")
    if not isinstance(content, str):
        raise MessageError(
            f"the content of message {number} must be text, found {type(content).__name__}"
        )
    if (place := lone_surrogate(content)) is not None:
        raise MessageError(
            f"the content of message {number} has a lone surrogate at {place}; "
            "it is not valid Unicode"
        )
    return {"role": role, "content": content}


def _plain(value: Any) -> Any:
    """The text itself, if it is one of a class derived from `str`."""
    return str.__str__(value) if isinstance(value, str) else value


def _check_length(turns: Sequence[Mapping[str, str]], context: int) -> None:
    characters = sum(len(turn["content"]) for turn in turns)
    if characters > MAX_CHARACTERS_PER_TOKEN * context:
        raise MessageError(
            f"the messages have {characters} characters, more than {MAX_CHARACTERS_PER_TOKEN} for "
            f"each of the {context} tokens of the model's context; use a shorter conversation"
        )
