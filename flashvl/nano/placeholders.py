"""What the wordings leave open, for a shape, a colour, an object, a number or another noun."""

from __future__ import annotations

from .answers import with_article
from .shapes import pick
from .wordings import COLOURS_ZH, NUMBER_NAMES, SHAPES_ZH


def words_of_object(shape: str, colour: str, language: str, random) -> dict[str, str]:
    if language == "zh":
        name = COLOURS_ZH[colour] + pick(("", "的"), random) + SHAPES_ZH[shape][0]
        return words_of_name(name, "个" + name)
    return words_of_name(f"{colour} {shape}", f"{colour} {_plural(shape)}")


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def words_of_shape(shape: str, language: str, random) -> dict[str, str]:
    if language == "en":
        return words_of_name(shape, _plural(shape))
    names = SHAPES_ZH[shape]
    name = names[0] if random.random() < 0.6 else pick(names, random)
    return words_of_name(name, "个" + name)


def words_of_number(language: str) -> dict[str, str]:
    return words_of_name(*NUMBER_NAMES[language])


def words_of_name(name: str, counted: str) -> dict[str, str]:
    return {"name": name, "counted": counted, "a_name": with_article(name)}


def words_of_colour(colour: str) -> dict[str, str]:
    return {"colour": colour, "a_colour": with_article(colour)}
