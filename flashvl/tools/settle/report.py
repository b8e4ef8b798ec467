"""What `flashvl settle` says: the table, a verdict on each field in words, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...assumptions import FIELDS, Alternative, in_words
from ...errors import printable, shortened
from ...input.tokenizer import Tokenizer
from ...terminal import table
from .measure import Measured, Sample
from .search import PREFERRED, SETTLED, Search, Verdict, same

MAX_VALUE, MAX_RIVALS = 46, 90  # characters of a value and of a list of them
SEES = 4.0  # standard errors from which on a model is taken to see
MEANING = (
    "less likely: by how many nats an answer is less likely than under the best value, the mean.\n"
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
    parts = [table_of(search), MEANING] if search.verdicts else []
    blind = sees is not None and sees[1] < SEES
    if sees is not None:
        parts.append(sight(sees))
    parts.append("\n".join(sentence(search, name, blind) for name in search.asked))
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
            value = shown_value(search, verdict.name, one.alternative)
            rows.append((label, value, *figures, shown, str(one.samples)))
            label = ""
    return table(rows)


def shown_value(search: Search, name: str, alternative: Alternative) -> str:
    words = in_words(name, alternative.value, search.config.vision.layers)
    return shortened(printable(words), MAX_VALUE)


def sentence(search: Search, name: str, blind: bool) -> str:
    """The verdict on a field in words, and what would tell if nothing does yet."""
    one = FIELDS[name]
    head = f"{one.label} ({one.what}): "
    if name not in search.verdicts:
        return head + "not asked yet"
    verdict = search.verdicts[name]
    if blind:
        return head + "cannot be told, for the model does not see; this needs its real weights"
    best = Alternative(verdict.best, "")
    if not verdict.rivals:
        return f"{head}{verdict.word}: {shown_value(search, name, best)}"
    rivals = [printable(str(rival.value)) for rival in verdict.rivals]
    either = shortened(", ".join([printable(str(verdict.best)), *rivals]), MAX_RIVALS)
    return f"{head}cannot be told: {either}. {what_would_tell(search, verdict)}"


def what_would_tell(search: Search, verdict: Verdict) -> str:
    alike = all(one.errors == 0 for one in verdict.others if one.alternative in verdict.rivals)
    if search.own:
        return "More recorded answers would, about pictures of many sizes and shapes"
    if alike:
        return "They make no difference to these pictures; others might tell, by --scenes"
    return "More pictures would, by --scenes, or answers of the published code, by --answers"


def sight(sees: tuple[float, float]) -> str:
    loss, errors = sees
    told = "it sees" if errors >= SEES else "it does not see, as far as can be told"
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
    proof = "this is proof of them." if whole else "the rest was not reached."
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
    blind = sees is not None and sees[1] < SEES
    fields = {
        verdict.name: {
            "best": verdict.best,
            "verdict": "cannot be told" if blind else verdict.word,
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
