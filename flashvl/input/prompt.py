"""Messages become token ids: ChatML, with the picture's places in the first user turn.

Source: the LLaVA-NeXT template for Qwen, and the ids -200 / -201 of the published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import TILE_NEXT, TILE_START, PromptConfig
from ..errors import MessageError
from ..reading import lone_surrogate, shown
from .tokenizer import Tokenizer

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]


def encode_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    config: PromptConfig,
    tiles: int = 0,
    tokens_per_tile: int = 0,
) -> list[int]:
    """A conversation -> ids of the prompt, up to where the assistant's answer begins.

    With `tiles` > 0 the picture's places stand in the first user turn, before its text and a
    line break. Raises `MessageError`.
    """
    check_messages(messages)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    start, end = tokenizer.control_id(TURN_START), tokenizer.control_id(TURN_END)
    line_break = tokenizer.encode("\n")
    places = picture_ids(tiles, tokens_per_tile, tokenizer, config.slice_markers)
    ids: list[int] = []
    for message in messages:
        # Role and text are encoded together, so that a text's first line break merges as published.
        text = f"{message['role']}\n{message['content']}"
        ids.append(start)
        if message["role"] == "user" and places:
            ids += tokenizer.encode("user\n") + places
            places, text = [], f"\n{message['content']}"
        ids += [*tokenizer.encode(text), end, *line_break]
    return [*ids, start, *tokenizer.encode("assistant\n")]


def picture_ids(
    tiles: int, tokens_per_tile: int, tokenizer: Tokenizer, markers: tuple[str, str] | None
) -> list[int]:
    """The ids that stand for a picture: for each tile -200 and then -201 for all its tokens."""
    tile = [TILE_START] + [TILE_NEXT] * (tokens_per_tile - 1)
    if markers:
        tile = [tokenizer.control_id(markers[0]), *tile, tokenizer.control_id(markers[1])]
    return tile * tiles


def check_messages(messages: Any) -> None:
    """Raises `MessageError` unless `messages` is a conversation that ends with a user turn."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(
            'messages must be a list of {"role", "content"}, such as '
            '[{"role": "user", "content": "What is this?"}]'
        )
    if not messages:
        raise MessageError("there are no messages; give at least one user turn")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise MessageError(f'message {number} must have a "role" and a "content"')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise MessageError(
                f"message {number} has the role {shown(role)}; use {', '.join(ROLES)}"
            )
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
    if messages[-1]["role"] != "user":
        raise MessageError("the last message must be a user turn, for the model to answer it")
