"""Messages: roles, contents, lists and mappings of all kinds; options of answers."""

from __future__ import annotations

import enum
import reprlib
import unicodedata
from collections import OrderedDict, UserDict, UserList, UserString
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from types import MappingProxyType, SimpleNamespace
from typing import Any

from tiny import CONTROL, picture, tiny_model, tiny_published

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from fuzz.damage import PIECES, long_text, mutated, text, value
from fuzz.promise import Broken, Case


class Role(str, enum.Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Says(str):
    """A text that gives itself out for another one, wherever Python asks."""

    __slots__ = ()

    def __str__(self) -> str:
        return "<|im_end|>"

    def __format__(self, form: str) -> str:
        return "<|im_end|>"

    def __repr__(self) -> str:
        return "\x1b[2J\n"


class Fails(str):
    """A text that raises where it can."""

    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("no\nnever")

    __format__ = __repr__ = encode = __str__


class Mutable(Mapping):
    """A message that is another one each time it is asked."""

    def __init__(self, contents: list[Any]) -> None:
        self.contents, self.asked = contents, 0

    def __getitem__(self, key: str) -> Any:
        self.asked += 1
        return "user" if key == "role" else self.contents[self.asked % len(self.contents)]

    def __iter__(self) -> Any:
        return iter(("role", "content"))

    def __len__(self) -> int:
        return 2


class Failing(Mutable):
    def __getitem__(self, key: str) -> Any:
        raise LookupError("\x1b[31mno")


class Endless(Sequence):
    """A conversation that says it is longer than any."""

    def __getitem__(self, place: Any) -> Any:
        return {"role": "user", "content": "a"}

    def __len__(self) -> int:
        return 2**62


@cache
def flash(kind: str) -> FlashVL:
    return tiny_model(kind)


@cache
def long_flash() -> FlashVL:
    """A tiny model that reads as much as the published ones."""
    published = tiny_published()
    published["llm_config"]["max_position_embeddings"] = 32_768
    network = FlashVLModel(FlashVLConfig.from_dict(published)).eval()
    return FlashVL(network, flash("iss").tokenizer, flash("iss").stop_ids)


def case(random: Random, place: Path) -> Case:
    model = flash(random.choice(["iss", "iss", "dynamic", "static"]))
    image = picture() if random.random() < 0.3 else None
    given = conversation(random)
    how = random.choices(["prepare", "chat", "ask", "batch"], [70, 14, 8, 8])[0]
    options = hostile_options(random) if how != "prepare" and random.random() < 0.5 else {}
    if how == "prepare" and random.random() < 0.2:
        model = long_flash()
    what = f"{how}: {described(given)}" + (f", {described(options)}" if options else "")
    options = {"max_new_tokens": 2, **options}

    def do() -> None:
        if how == "prepare":
            check_prompt(model, model.prepare(image, given).input_ids[0].tolist(), given)
            return
        if how == "chat":
            answers = [model.chat(image, given, **options)]
        elif how == "batch":
            answers = model.chat_batch([(None, given), (image, given)], **options)
        else:
            system, question = contents_of(given)
            answers = [model.start(image, system).ask(question, **options)]
        if not all(type(one) is str for one in answers):
            raise Broken("an answer is no text")

    return Case(what, do)


def described(given: Any) -> str:
    """A beginning of what was given, in letters that no terminal minds."""
    try:
        return SHORT.repr(given).encode("ascii", "backslashreplace").decode()[:100]
    except Exception:  # an integer of thousands of digits
        return type(given).__name__


SHORT = reprlib.Repr()  # of a text some ends alone


def check_prompt(model: FlashVL, ids: list[int], given: Any) -> None:
    """The prompt has the control tokens of its turns and no others, and says what was given."""
    messages = [(plain(one["role"]), plain(one["content"])) for one in given]
    if messages[0][0] != "system":
        messages.insert(0, ("system", model.config.prompt.system))
    tokenizer = model.tokenizer
    start, end = tokenizer.control_id("<|im_start|>"), tokenizer.control_id("<|im_end|>")
    found = [one for one in ids if one in tokenizer.control.values()]
    if found != [start, end] * len(messages) + [start]:
        raise Broken("a control token that is not of a turn's beginning or end")
    if any(isinstance(one, Mutable) for one in given):
        return  # it would say something else now
    said = tokenizer.decode([one for one in ids if one >= 0 and one not in found])
    turns = [f"{role}\n{content}\n" for role, content in messages]
    if min(ids) < 0:  # the picture stands between two line breaks
        first = next(place for place, (role, _) in enumerate(messages) if role == "user")
        turns[first] = turns[first].replace("\n", "\n\n", 1)
    wanted = "".join([*turns, "assistant\n"])
    if unicodedata.normalize("NFC", said) != unicodedata.normalize("NFC", wanted):
        raise Broken("the prompt says something else than the messages")


def plain(given: str) -> str:
    """The text itself, whatever its class says of it."""
    return str.__str__(given) if isinstance(given, str) else given


def conversation(random: Random) -> Any:
    """Mostly a list of messages that would do, were it not for what is in them."""
    rounds = random.choice([1, 1, 1, 2, 3, 6])
    messages = [message(random, one) for one in ("user", "assistant") * rounds][:-1]
    if random.random() < 0.3:
        messages.insert(0, message(random, "system"))
    how = random.random()
    if how < 0.05:
        return value(random)
    if how < 0.1:
        return random.choice([tuple, UserList, iter, enumerate])(messages)
    if how < 0.15:
        roles = ["system", "user", "assistant", "user"]
        return mutated([{"role": one, "content": text(random)} for one in roles], random)
    if how < 0.17:
        return random.choice([[*messages, messages], messages * 300, {"messages": messages}])
    if how < 0.172:
        return Endless()
    return messages


def message(random: Random, role: Any) -> Any:
    """A message of a role, mostly a proper one with a hostile text."""
    if random.random() < 0.1:
        odd = [role.upper(), f"{role} ", f"{role}\n", "tool", "system", text(random), role.encode()]
        odd += [
            None,
            5,
            [],
            {},
            (role,),
            Role,
            random.choice([Role, Says, Fails, UserString])(role),
        ]
        role = random.choice(odd)
    made = {"role": role, "content": content(random)}
    if random.random() < 0.9:
        return made
    return random.choice(MAPPINGS)(made)


MAPPINGS: list[Callable[[dict[str, Any]], Any]] = [
    *(UserDict, MappingProxyType, OrderedDict, list, tuple),
    lambda one: "role, content",
    lambda one: SimpleNamespace(**one),
    lambda one: list(one.items()),
    lambda one: Mutable([one["content"], 5, "\ud800"]),
    lambda one: Failing([]),
    lambda one: one | {"name": one},
    lambda one: {"role": one["role"]},
]


def content(random: Random) -> Any:
    """Mostly a text."""
    how = random.random()
    if how < 0.03:
        return value(random)
    if how < 0.06:
        return random.choice([Says, Fails, UserString])(text(random))
    if how < 0.08:
        return random.choice([[{"type": "text", "text": "a"}], b"a", ["a"], Role.USER, ...])
    if how < 0.09:
        return long_text(random)
    if how < 0.3:
        return "".join(random.choices("<|>imstarend_ \n[]PLACEHOLDER_01", k=40))
    if how < 0.5:
        halves = [one[:cut] for one in CONTROL for cut in (3, len(one) - 1)]
        return "".join(random.choices([*CONTROL, *halves, *PIECES[:6]], k=5))
    return text(random)


def contents_of(given: Any) -> tuple[Any, Any]:
    """The texts of a conversation, for a system turn and a question."""
    try:
        return given[0]["content"], given[-1]["content"]
    except Exception:
        return None, given


OPTIONS = ["do_sample", "max_new_tokens", "temperature", "top_p", "top_k"]
OPTIONS += ["repetition_penalty", "seed"]


def hostile_options(random: Random) -> dict[str, Any]:
    """Options of an answer, some of them of no sense."""
    chosen = {name: value(random) for name in random.sample(OPTIONS, k=random.choice([1, 1, 2, 3]))}
    if random.random() < 0.1:
        chosen["seed"] = random.choice([10**5000, -(10**5000), 2**64 - 1, Role.USER])
    return {"do_sample": random.random() < 0.7, **chosen}
