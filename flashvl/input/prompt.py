"""Messages become token ids: ChatML, with the picture's places in the first user turn.

Source: the LLaVA-NeXT template for Qwen, and the ids -200 / -201 of the published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..assumptions import PLACEHOLDERS
from ..config import TILE_NEXT, TILE_START, PromptConfig
from ..errors import MessageError
from ..reading import lone_surrogate, one_line, shown
from .tokenizer import Tokenizer

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")

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
    turns = read_messages(messages, context)
    if turns[0]["role"] != "system" and config.system is not None:
        turns = [{"role": "system", "content": config.system}, *turns]
    if context is not None:
        _check_length(turns, context)
    start, end = tokenizer.control_id(TURN_START), tokenizer.control_id(TURN_END)
    line_break = tokenizer.encode("\n")
    places = picture_ids(tiles, tokens_per_tile, tokenizer, config.slice_markers)
    ids: list[int] = []
    for turn in turns:
        # Role and text are encoded together, so that a text's first line break merges as published.
        text = f"{turn['role']}\n{turn['content']}"
        ids.append(start)
        if turn["role"] == "user" and places:
            ids += tokenizer.encode("user\n") + places
            between = "\n" if config.image_place == "line" else ""
            places, text = [], between + turn["content"]
        ids += [*tokenizer.encode(text), end, *line_break]
    return [*ids, start, *tokenizer.encode("assistant\n")]


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


def read_messages(messages: Any, context: int | None = None) -> list[dict[str, str]]:
    """A conversation that ends with a user turn, in plain dicts of plain texts.

    A text may come as a member of an enumeration, which Python writes by its name. Raises
    `MessageError`, also for more than `context` messages.
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
    if turns[-1]["role"] != "user":
        raise MessageError("the last message must be a user turn, for the model to answer it")
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
