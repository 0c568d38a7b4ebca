"""The table of codes: what can be found, by which rule, and what it is called in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gradrecipes.core.finding import Finding, Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.rules.exploding_gradient import exploding_gradient
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization
from gradrecipes.diagnosis.rules.learning_rate_too_high import learning_rate_too_high
from gradrecipes.diagnosis.rules.nonfinite_loss import nonfinite_loss


class Code(NamedTuple):
    """Tell what a code means: the rule that finds it, cause or symptom, and a line for a list."""

    rule: Callable[[Trace], Finding | None]
    kind: Kind
    title: str


CODES: dict[str, Code] = {
    "exploding_initialization": Code(
        exploding_initialization, Kind.CAUSE, "The initial weights are too large for the depth and the activation"
    ),
    "learning_rate_too_high": Code(
        learning_rate_too_high, Kind.CAUSE, "The steps are too long: the loss climbs instead of falling"
    ),
    "exploding_gradient": Code(
        exploding_gradient, Kind.SYMPTOM, "The gradients are out of proportion, overflow, or jump and stay up"
    ),
    "nonfinite_loss": Code(nonfinite_loss, Kind.SYMPTOM, "The loss becomes NaN or infinite"),
}
