"""Which values of the assumptions a model was trained under: a search by paired differences.

All alternatives of a field are measured on the same samples, beside the best so far; those that are
worse beyond doubt are measured no more. What is better takes the best one's place, until no field
changes any more. Then fields that act together are tried in pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...assumptions import PLACEHOLDERS, Alternative, alternatives_of
from ...config import MODEL_KINDS, FlashVLConfig
from .measure import Measured

# In the order in which they are asked: those without which nothing is seen come first.
FIELDS_ASKED = (
    "feature_layer",
    "system",
    "token_order",
    "thumbnail",
    "padding",
    "stitching",
    "image_place",
    "slice_markers",
    "tile_order",
    "grid",
    "max_tiles",
)
PAIRS = (
    ("grid", "max_tiles"),
    ("stitching", "padding"),
    ("stitching", "thumbnail"),
    ("padding", "thumbnail"),
)
OF_A_MARGIN = {"stitching", "padding"}
OF_A_GRID = {"grid", "tile_order", "thumbnail", "max_tiles"}
MAX_ROUNDS = 5

BLOCK = 8  # samples between two looks at what is beyond doubt, and the fewest that tell anything
# Standard errors: from which on an alternative is dropped, takes the best one's place, and what a
# verdict says. Among a hundred comparisons two happen by chance, and six do not.
BEYOND_DOUBT, BETTER, SETTLED, PREFERRED = 6.0, 3.0, 4.0, 2.0
# An answer counts at most so much, in nats, so that the few that go wrong do not drown the others.
MOST_OF_AN_ANSWER = 0.1

Values = dict[str, Any]  # of fields


@dataclass(frozen=True)
class Difference:
    """An alternative beside the best, over the samples that both were measured on.

    `loss`: how much greater the losses of its answers are, in nats, the mean; `errors`: the same in
    standard errors, where an answer counts at most `MOST_OF_AN_ANSWER`. Above 0 the best is better.
    `right` and `likeliest` are the shares of answers and tokens that are the model's own.
    """

    alternative: Alternative
    loss: float
    errors: float
    right: float
    likeliest: float
    samples: int

    @property
    def tells(self) -> bool:
        """Whether it is worse by more than chance."""
        return self.samples >= BLOCK and self.errors >= PREFERRED


@dataclass(frozen=True)
class Verdict:
    """What is known of a field: its best value, and how all alternatives compare with it.

    With `proof` the answers are the model's own, and under the best values all their tokens are the
    likeliest: what makes another one likelier is refuted.
    """

    name: str
    best: Any
    differences: tuple[Difference, ...]
    proof: bool = False

    @property
    def others(self) -> tuple[Difference, ...]:
        return tuple(one for one in self.differences if not same(one.alternative.value, self.best))

    @property
    def rivals(self) -> tuple[Alternative, ...]:
        """The values that cannot be told from the best one."""
        if self.proof:
            return tuple(one.alternative for one in self.others if one.likeliest == 1)
        return tuple(one.alternative for one in self.others if not one.tells)

    @property
    def word(self) -> str:
        """ "settled", "preferred" or "cannot be told", by the alternative that is closest."""
        if self.rivals:
            return "cannot be told"
        if self.proof or min(one.errors for one in self.others) >= SETTLED:
            return "settled"
        return "preferred"


@dataclass
class Search:
    """The best values so far, and what is known of each field.

    `measure` is asked once for the same values and the same number of a sample, and `step` hears
    beforehand what is compared. With `own` the answers are the model's own, so that the true values
    make all their tokens the likeliest. `rounds` counts how often all fields were asked.
    """

    config: FlashVLConfig
    measure: Callable[[Values, int], Measured]
    samples: int
    asked: dict[str, tuple[Alternative, ...]]
    own: bool = False
    step: Callable[[str], None] = lambda what: None
    rounds: int = 0
    best: Values = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    known: dict[tuple[str, ...], list[Measured]] = field(default_factory=dict)  # sample by sample

    def __post_init__(self) -> None:
        self.best = self.stated()

    def stated(self) -> Values:
        """What the config has, from which the search begins."""
        return {name: self.config.assumptions[name] for name in self.asked}

    def run(self) -> None:
        """Field by field until nothing changes, then in pairs, and again where a pair is better."""
        for self.rounds in range(1, MAX_ROUNDS + 1):
            if not self._ask_fields() and not self._ask_pairs():
                break
        for number in range(self.samples if self.own else 0):  # to prove them, all answers count
            self._measured(self.best, number, "all answers")

    def planned(self) -> int:
        """The most passes of a round, if nothing stops early."""
        single = sum(len(found) - 1 for found in self.asked.values())
        both = sum(
            (len(self.asked[one]) - 1) * (len(self.asked[other]) - 1) for one, other in self.pairs()
        )
        return (1 + single + both) * self.samples

    def pairs(self) -> list[tuple[str, str]]:
        return [pair for pair in PAIRS if set(pair) <= set(self.asked)]

    def key(self, values: Values) -> tuple[str, ...]:
        """Of `known`."""
        return tuple(repr(values[name]) for name in self.asked)

    def _ask_fields(self) -> bool:
        """Asks each field once -> whether one changed."""
        before = dict(self.best)
        for name, alternatives in self.asked.items():
            changes = [{name: one.value} for one in alternatives]
            measured = self._race(name, changes)
            best = measured[self._place_of_best(changes)]
            differences = tuple(compare(one, its, best) for one, its in zip(alternatives, measured))
            proof = self.own and all(one.likeliest == one.tokens for one in best)
            self.verdicts[name] = Verdict(name, self.best[name], differences, proof)
        return self.best != before

    def _ask_pairs(self) -> bool:
        """Asks the pairs of fields -> whether something changed."""
        before = dict(self.best)
        for pair in self.pairs():
            both = itertools.product(*(self.asked[name] for name in pair))
            changes = [{name: one.value for name, one in zip(pair, values)} for values in both]
            self._race(" and ".join(pair), changes)
        return self.best != before

    def _race(self, what: str, changes: Sequence[Values]) -> list[list[Measured]]:
        """Measures changes of the best, drops what is worse beyond doubt, and takes what is better.

        -> for each change what was measured, sample by sample from the first.
        """
        candidates = [self.best | change for change in changes]
        measured: list[list[Measured]] = [[] for _ in candidates]
        racing = list(range(len(candidates)))
        for number in range(self.samples):
            for one in racing:
                measured[one].append(self._measured(candidates[one], number, what))
            if (number + 1) % BLOCK == 0 and number >= BLOCK:
                ahead = measured[likeliest(racing, measured)]
                racing = [one for one in racing if evidence(measured[one], ahead)[1] < BEYOND_DOUBT]
                if len(racing) == 1:
                    break
        before = measured[self._place_of_best(changes)]
        enough = 0.0 if self.own else BETTER  # a model's own answers are no matter of chance
        better = [one for one in racing if evidence(before, measured[one])[1] > enough]
        if better:
            self.best = candidates[likeliest(better, measured)]
        return measured

    def _place_of_best(self, changes: Sequence[Values]) -> int:
        """Which of some changes of the best values changes nothing."""
        return next(
            number
            for number, change in enumerate(changes)
            if all(same(value, self.best[name]) for name, value in change.items())
        )

    def _measured(self, values: Values, number: int, what: str) -> Measured:
        found = self.known.setdefault(self.key(values), [])
        if len(found) <= number:
            self.step(what)
            found.append(self.measure(values, number))
        return found[number]


def same(one: object, other: object) -> bool:
    """Whether two values of a field are one; 0 and False are two."""
    return type(one) is type(other) and one == other


def likeliest(numbers: Sequence[int], measured: Sequence[Sequence[Measured]]) -> int:
    """Of some candidates the one that makes the answers likelier than each that it is held with."""
    best, *others = numbers
    for one in others:
        if evidence(measured[best], measured[one])[1] > 0:
            best = one
    return best


def evidence(one: Sequence[Measured], other: Sequence[Measured]) -> tuple[float, float]:
    """How much less likely answers are under `one` than under `other`: in nats, in standard errors.

    Over the samples that both have; a single one has no error.
    """
    pairs = [list(zip(mine.losses, its.losses)) for mine, its in zip(one, other)]
    if len(pairs) < 2:
        return 0.0, 0.0
    most, count = MOST_OF_AN_ANSWER, len(pairs)
    loss = math.fsum(math.fsum(a - b for a, b in pair) / len(pair) for pair in pairs) / count
    bounded = [
        math.fsum(max(-most, min(most, a - b)) for a, b in pair) / len(pair) for pair in pairs
    ]
    mean = math.fsum(bounded) / count
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in bounded) / (count - 1) / count)
    if error > 0:
        return loss, mean / error
    return loss, math.copysign(math.inf, mean) if mean else 0.0


def compare(
    alternative: Alternative, measured: Sequence[Measured], best: Sequence[Measured]
) -> Difference:
    loss, errors = evidence(measured, best)
    return Difference(
        alternative,
        loss,
        errors,
        right=math.fsum(one.right for one in measured) / len(measured),
        likeliest=sum(one.likeliest for one in measured) / sum(one.tokens for one in measured),
        samples=min(len(measured), len(best)),
    )


def fields_to_ask(
    config: FlashVLConfig, control: Mapping[str, int], only: Sequence[str] = ()
) -> dict[str, tuple[Alternative, ...]]:
    """The fields that matter to this model, each with its alternatives, of which one is in use.

    Without a margin there is nothing to stitch or to pad, a model of one tile has no grid, and
    markers need both placeholders among the `control` tokens.
    """
    asked: dict[str, tuple[Alternative, ...]] = {}
    for name in FIELDS_ASKED:
        none = (name in OF_A_MARGIN and config.tiler.margin == 0) or (
            name in OF_A_GRID and MODEL_KINDS[config.model_type].max_tiles == 1
        )
        if none or (only and name not in only):
            continue
        found = alternatives_of(name, config.vision.layers)
        if name == "slice_markers" and not set(PLACEHOLDERS) <= set(control):
            found = found[:1]
        stated = config.assumptions[name]
        if not any(same(one.value, stated) for one in found):
            found = (Alternative(stated, "as it is stated"), *found)
        if len(found) > 1:
            asked[name] = found
    return asked
