"""What `flashvl settle` says: the table, a verdict on each field in words, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...assumptions import FIELDS, in_words
from ...errors import printable, shortened
from ...input.tokenizer import Tokenizer
from ...terminal import table
from .measure import Measured, Sample
from .search import PREFERRED, SETTLED, Search, Verdict, same

MAX_VALUE, MAX_VALUES = 46, 120  # characters of a value and of a list of them
SEES = 4.0  # standard errors from which on a model is taken to see
LOSS = "less likely: by how many nats an answer is less likely than under the best value, the mean."
OWN_LOSS = (
    "less likely: by how many nats an answer's tokens fall short of the likeliest, and more than\n"
    "under the best value, the mean."
)
MEANING = (
    "standard errors: the same in units of what chance does to it, where a single answer counts\n"
    f"little; {PREFERRED:g} and more is a preference, {SETTLED:g} and more settles."
)


def as_text(
    search: Search,
    samples: Sequence[Sample],
    sees: tuple[float, float] | None,
    tokenizer: Tokenizer,
) -> str:
    """The table and the verdicts. `sees` is what `what_it_sees` found."""
    loss = OWN_LOSS if search.own else LOSS
    parts = [table_of(search), f"{loss}\n{MEANING}"] if search.verdicts else []
    if sees is not None:
        parts.append(sight(sees))
    elif not search.own:
        parts.append("It was not asked whether the model sees at all.")
    parts.append("\n".join(sentence(search, name, is_blind(sees)) for name in search.asked))
    if search.own and search.verdicts:
        parts.append(own_answers(search, samples, tokenizer))
    return "\n\n".join(parts)


def table_of(search: Search) -> str:
    """A row for each alternative of each field that was asked."""
    share = "tokens likeliest" if search.own else "answers right"
    rows = [("field", "alternative", "less likely", "standard errors", share, "pictures")]
    for verdict in search.verdicts.values():
        label = FIELDS[verdict.name].label
        for one in verdict.differences:
            best = same(one.alternative.value, verdict.best)
            shown = f"{one.likeliest if search.own else one.right:.1%}"
            figures = ("best", "") if best else (f"{one.loss:+.4f}", f"{one.errors:+.1f}")
            value = shown_value(search, verdict.name, one.alternative.value)
            rows.append((label, value, *figures, shown, str(one.samples)))
            label = ""
    return table(rows)


def shown_value(search: Search, name: str, value: object) -> str:
    words = in_words(name, value, search.config.vision.layers)
    return shortened(printable(words), MAX_VALUE)


def sentence(search: Search, name: str, blind: bool) -> str:
    """The verdict on a field in words, what the field is, and what would tell if nothing does."""
    one, verdict = FIELDS[name], search.verdicts.get(name)
    if verdict is None:
        said = "not asked yet"
    elif blind:
        said = "cannot be told: the model does not see. Only weights of one that does would tell."
    elif verdict.rivals:
        values = [verdict.best, *(rival.value for rival in verdict.rivals)]
        either = " or ".join(shown_value(search, name, value) for value in values)
        said = f"cannot be told: {shortened(either, MAX_VALUES)}. "
        said += what_would_tell(search, verdict)
    else:
        said = f"{verdict.word}: {shown_value(search, name, verdict.best)}"
    return f"{one.label}: {said}\n    {one.what}"


def what_would_tell(search: Search, verdict: Verdict) -> str:
    if search.own:
        return "More recorded answers would tell, about pictures of many sizes and shapes."
    if all(one.errors == 0 for one in verdict.others if one.alternative in verdict.rivals):
        return "They are the same for these pictures; others would tell (--scenes)."
    return "More pictures would tell (--scenes), or answers of the published code (--answers)."


def is_blind(sees: tuple[float, float] | None) -> bool:
    return sees is not None and sees[1] < SEES


def sight(sees: tuple[float, float]) -> str:
    loss, errors = sees
    told = "it does not see, as far as can be told" if is_blind(sees) else "it sees"
    return (
        f"With another scene's picture right answers are less likely by {loss:.3f} nats "
        f"({errors:+.1f} standard errors): {told}."
    )


def own_answers(search: Search, samples: Sequence[Sample], tokenizer: Tokenizer) -> str:
    """Whether all tokens of the recorded answers are the likeliest, and the first that is not."""
    measured = measured_under_best(search)
    tokens = sum(one.tokens for one in measured)
    likeliest = sum(one.likeliest for one in measured)
    said = f"{likeliest:,} of {tokens:,} tokens of {len(measured)} recorded answers"
    for sample, one in zip(samples, measured):
        if one.other is not None:
            found, likelier = (
                printable(repr(tokenizer.decode([number])))
                for number in (one.other.token_id, one.other.likelier_id)
            )
            return (
                f"Under the best values {said} ({likeliest / tokens:.2%}) are the likeliest.\nThe "
                f"first that is not: {sample.name}, token {one.other.place + 1}, {found}, where "
                f"{likelier} is likelier."
            )
    whole = len(measured) == len(samples)
    proof = "this is proof of what is settled." if whole else "the others were not reached."
    return f"Under the best values all {said} are the likeliest: {proof}"


def measured_under_best(search: Search) -> list[Measured]:
    return search.known.get(search.key(search.best), [])


def as_json(
    model: str,
    search: Search,
    samples: Sequence[Sample],
    sees: tuple[float, float] | None,
) -> dict[str, Any]:
    """All figures; `verdict` is that of the words, blindness included."""
    fields = {
        verdict.name: {
            "best": search.best[verdict.name],
            "verdict": "cannot be told" if is_blind(sees) else verdict.word,
            "alternatives": [
                {
                    "value": one.alternative.value,
                    "less_likely": one.loss,
                    "standard_errors": one.errors if abs(one.errors) < 1e9 else None,
                    "answers_right": one.right,
                    "tokens_likeliest": one.likeliest,
                    "pictures": one.samples,
                }
                for one in verdict.differences
            ],
        }
        for verdict in search.verdicts.values()
    }
    result: dict[str, Any] = {"model": model, "pictures": len(samples), "fields": fields}
    if sees is not None:
        result["sees"] = {"less_likely": sees[0], "standard_errors": sees[1]}
    if search.own:
        measured = measured_under_best(search)
        result["answers"] = {
            "measured": len(measured),
            "tokens": sum(one.tokens for one in measured),
            "likeliest": sum(one.likeliest for one in measured),
        }
    return result


def duration(seconds: float) -> str:
    """In the unit that suits a person."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
