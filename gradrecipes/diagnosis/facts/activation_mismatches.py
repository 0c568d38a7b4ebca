"""Losses that do not fit the last activation: wrong logits or probabilities, or targets out of its range."""

from __future__ import annotations

from collections.abc import Iterator

from gradrecipes.core.findings import Severity
from gradrecipes.diagnosis.facts.data_facts import Head
from gradrecipes.diagnosis.facts.mismatch import (
    BINARY,
    BY_ENTRY,
    CATEGORICAL,
    CROSS_ENTROPIES,
    SPARSE,
    Mismatch,
    class_of,
    compile_with,
    from_logits,
    last_layer,
)
from gradrecipes.diagnosis.facts.readings import number, rounded

A_HAIR = 1e-3  # by which rounding may move a probability out of [0, 1], also in half precision
PROBABILITIES = {"softmax", "sigmoid", "hard_sigmoid"}
NO_PROBABILITIES = {"linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "softplus", "exponential"}
NO_LOGITS = {"relu", "relu6", "tanh", "softplus", "exponential"}
MIN_UNREACHED_SHARE = 0.05  # share of the targets that the activation cannot reach
CERTAIN_UNREACHED_SHARE = 0.3  # share reported whatever the loss does; a tanh cannot reach .29 of standardized targets
# Ends of the range of an activation, and the reading of the data probe that counts the targets beyond them.
REACH: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("0 to 1", ("share_below_0", "share_above_1")),
    "hard_sigmoid": ("0 to 1", ("share_below_0", "share_above_1")),
    "softmax": ("0 to 1", ("share_below_0", "share_above_1")),
    "tanh": ("-1 to 1", ("share_below_minus_1", "share_above_1")),
    "hard_tanh": ("-1 to 1", ("share_below_minus_1", "share_above_1")),
    "softsign": ("-1 to 1", ("share_below_minus_1", "share_above_1")),
    "elu": ("-1 upwards", ("share_below_minus_1",)),
    "relu": ("0 upwards", ("share_below_0",)),
    "relu6": ("0 to 6", ("share_below_0",)),
    "softplus": ("0 upwards", ("share_below_0",)),
    "exponential": ("0 upwards", ("share_below_0",)),
    "log_softmax": ("0 downwards", ("share_above_1",)),
}


def activation_mismatches(head: Head) -> Iterator[Mismatch]:
    """Yield the mismatches between a loss of Keras and the range of the output."""
    if head.known and head.loss in CROSS_ENTROPIES:
        yield from _one_unit(head)
        yield from _no_logits(head) if head.from_logits else _no_probabilities(head)
    yield from _softmax_twice(head)
    yield from _softmax_over_another_axis(head)
    if head.known:
        yield from _direction_of_one_number(head)
        yield from _sign(head)
        yield from _out_of_reach(head)


def _one_unit(head: Head) -> Iterator[Mismatch]:
    always = head.measured.min == head.measured.max == 1.0  # of a net whose last operation is not known
    softmax = head.activation == "softmax" or (head.activation == "unknown" and always)
    if head.units != 1 or not (softmax or head.loss in CATEGORICAL):
        return
    what = "A softmax over one unit is always 1" if softmax else f"With one unit, {head.loss} is 0 whatever the output"
    yield Mismatch(
        title="The output has one unit, and a softmax over one unit is always 1",
        statement=f"{what}; the output {head.output.name!r} has one unit.",
        consequence="The prediction is the same for every sample, the gradient is 0, and the net cannot learn.",
        measured=1.0,
        expected=2.0,
        prescription=compile_with(
            from_logits("binary_crossentropy", True),
            "For two classes: one linear unit and the binary cross-entropy of logits",
            "One unit tells two classes apart by a sigmoid; a softmax needs one unit for each class.",
            more=last_layer(1, None),
            risk="The model then gives logits: apply keras.ops.sigmoid to get probabilities.",
        ),
    )


def _direction_of_one_number(head: Head) -> Iterator[Mismatch]:
    if head.loss != "cosine_similarity" or head.units != 1:
        return
    yield Mismatch(
        title="The cosine similarity of one number is its sign",
        statement=f"{class_of(head.loss)} divides an answer by its length, and {head.output.name!r} has one unit.",
        consequence="The answer is taken as -1 or 1, so the gradient is 0 but at 0, and the net cannot learn.",
        measured=1.0,
        expected=2.0,
        prescription=compile_with(
            "'mean_squared_error'",
            "Compare the numbers themselves",
            "A direction needs two numbers or more; how far one number is off, a squared error tells.",
        ),
    )


def _no_logits(head: Head) -> Iterator[Mismatch]:
    activation = head.activation
    seen = head.measured.logits_seen
    if activation == "unknown" and head.loss in CATEGORICAL | SPARSE and not seen:
        shares = number(head.measured.sums_to_one)
        activation = "softmax" if shares is not None and shares > 0.99 else activation
    if activation in PROBABILITIES:
        again = "softmax" if head.loss in CATEGORICAL | SPARSE else "sigmoid"
        fixed = bool(seen)
        consequence = (
            "This release of Keras detects that, uses the logits from before the activation, and trains "
            "correctly; under mixed precision, after another operation or on another backend it does not."
            if fixed
            else f"The loss applies a {again} to numbers between 0 and 1: even the best prediction is far from "
            "certain, gradients are a fraction of what they should be, and the loss stays high."
        )
        yield Mismatch(
            title=f"from_logits=True on a {activation}: its outputs are probabilities, not logits",
            statement=(
                f"{class_of(head.loss)}(from_logits=True) gets the output {head.output.name!r} of a {activation}, "
                f"which lies between {_range(head)}."
            ),
            consequence=consequence,
            severity=Severity.NOTICE if fixed else Severity.CRITICAL,
            prescription=compile_with(
                from_logits(head.loss, True),
                f"Leave the {activation} out and keep from_logits=True",
                "Computed in one step, loss and activation never round a probability to 0 or 1.",
                more=last_layer(head.units, None),
                risk="The model then gives logits: apply the activation where you need probabilities.",
            ),
        )
    elif activation in NO_LOGITS:
        yield Mismatch(
            title=f"Logits from a {activation}: they cannot take every value",
            statement=f"{class_of(head.loss)}(from_logits=True) gets the output of a {activation}, {_range(head)}.",
            consequence="Logits need a wide range; cut off, they can neither rule a class out nor be certain.",
            severity=Severity.WARNING,
            sure=0.8,
            only_if_held_back=True,
            prescription=compile_with(
                from_logits(head.loss, True),
                f"Leave the {activation} out of the last layer",
                "A linear layer returns logits of any size.",
                more=last_layer(head.units, None),
            ),
        )


def _no_probabilities(head: Head) -> Iterator[Mismatch]:
    low, high = number(head.measured.min), number(head.measured.max)
    outside = low is not None and high is not None and (low < -A_HAIR or high > 1.0 + A_HAIR)
    certain = head.activation in NO_PROBABILITIES
    if certain or outside:
        name = "no activation" if head.activation == "linear" else f"a {head.activation}"
        name = "an operation" if head.activation == "unknown" else name
        right = "sigmoid" if head.loss in BINARY else "softmax"
        yield Mismatch(
            title=f"{class_of(head.loss)} expects probabilities and gets the output of {name}",
            statement=(
                f"The output {head.output.name!r} is produced by {name} and lies between {_range(head)}, while "
                f"{class_of(head.loss)} without from_logits=True interprets it as probabilities."
            ),
            consequence=(
                "Keras clips the output to the range from 1e-7 to 1: outside that range the gradient is 0 or the "
                "loss jumps, and the net learns by chance or not at all."
            ),
            measured=low if low is not None and low < 0 else high,
            expected=0.0 if low is not None and low < 0 else 1.0,
            prescription=compile_with(
                from_logits(head.loss, True),
                "Tell the loss that it gets logits",
                f"It then applies the {right} itself, without overflow and without rounding to 0.",
                risk=f"The model gives logits: apply keras.ops.{right} where you need probabilities.",
                more="" if head.activation in ("linear", "unknown") else last_layer(head.units, None),
            ),
        )
    elif head.loss in CATEGORICAL | SPARSE and (head.units or 0) > 1 and _single_probabilities(head):
        seen = bool(head.measured.logits_seen)
        sigmoids = head.activation == "sigmoid"
        behind = " with a sigmoid each" if sigmoids else " that do not sum to 1"
        what = "sigmoids" if sigmoids else "units"
        yield Mismatch(
            title=f"{head.units} {what} under {class_of(head.loss)}: they do not sum to 1",
            statement=(
                f"The output {head.output.name!r} has {head.units} units{behind}, and "
                f"{class_of(head.loss)} interprets them as one distribution over {head.units} classes."
            ),
            consequence=(
                "This release of Keras uses the logits from before the sigmoid, as if a softmax followed; the "
                "model then predicts something else than what it is trained on."
                if seen
                else "Every unit may predict 1 for every sample; the loss divides by their sum, and saturated "
                "units get no gradient."
            ),
            severity=Severity.NOTICE if seen else Severity.WARNING,
            prescription=compile_with(
                repr(head.loss),
                "Use a softmax for one class of several",
                "Mutually exclusive classes share one distribution.",
                more=last_layer(head.units, "softmax"),
                risk="If a sample may have several classes, keep the sigmoid and use the binary cross-entropy instead.",
            ),
        )


def _single_probabilities(head: Head) -> bool:
    """Return whether each unit has its own probability: by a sigmoid, or as measured for another operation."""
    read = head.measured
    none_sums = number(read.sums_to_one) == 0.0 and read.sums_over is None and read.nonfinite_share == 0.0
    return head.activation == "sigmoid" or (head.activation == "unknown" and none_sums)


def _softmax_twice(head: Head) -> Iterator[Mismatch]:
    activations = head.output.activations
    if len(activations) < 2 or activations[0] not in ("softmax", "sigmoid") or activations[1] not in PROBABILITIES:
        return
    both = f"{activations[0]} of a {activations[1]}"
    yield Mismatch(
        title=f"The output is the {both}: it can never be certain",
        statement=f"Two activations follow each other before the output {head.output.name!r}: the {both}.",
        consequence=(
            "The second one gets numbers between 0 and 1, so its own output is nearly the same for all classes: "
            "the loss cannot get near 0, and gradients are a fraction of what they should be."
        ),
        severity=Severity.WARNING,
        prescription=compile_with(
            repr(head.loss) if head.known else "model.loss",
            "Keep one of the two",
            "One activation turns logits into probabilities; a second one only makes them more alike.",
            more=last_layer(head.units, activations[1]),
        ),
    )


def _softmax_over_another_axis(head: Head) -> Iterator[Mismatch]:
    """Nothing but a softmax makes the samples of a batch sum to 1; other axes count where the loss compares classes."""
    axis, units = head.measured.sums_over, head.units
    if axis is None or (axis > 0 and head.loss not in CATEGORICAL | SPARSE) or _loss_axis(head) == axis:
        return
    share = number(head.measured.sums_to_one)
    along = "the samples of a batch" if axis == 0 else f"axis {axis}"
    consequence = "A prediction depends on the other samples of its batch" if axis == 0 else "Positions compete"
    yield Mismatch(
        title=f"The softmax runs over {along}, not over the {units} classes",
        statement=f"The output {head.output.name!r} sums to 1 over {along}; {rounded(100 * (share or 0.0))}% "
        "of its rows over the classes do.",
        consequence=f"{consequence}; the classes of one sample do not exclude each other.",
        measured=share,
        expected=1.0,
        prescription=compile_with(
            repr(head.loss) if head.known else "model.loss",
            "Let the softmax run over the last axis",
            "The classes of each sample then share one distribution.",
            more=last_layer(units, "softmax"),
        ),
    )


def _loss_axis(head: Head) -> int:
    axis = head.output.config.get("axis", -1)
    rank = len(head.shape or ()) + 1
    return axis % rank if isinstance(axis, int) else rank - 1


def _sign(head: Head) -> Iterator[Mismatch]:
    low = number(head.measured.min)
    unbounded = head.activation in {"linear", "tanh", "leaky_relu", "elu", "selu", "gelu", "silu"}
    negative = low is not None and low < -A_HAIR
    if head.loss == "poisson" and (unbounded or negative):
        yield Mismatch(
            title="The Poisson loss takes the logarithm of an output that may be negative",
            statement=f"The output {head.output.name!r} lies between {_range(head)}; poisson takes its logarithm.",
            consequence="The logarithm of a negative number is NaN: the first output below 0 makes all weights NaN.",
            measured=low,
            expected=0.0,
            prescription=compile_with(
                "'poisson'",
                "Make the output of the last layer positive",
                "An exponential or a softplus turns any number into a rate.",
                more=last_layer(head.units, "softplus"),
            ),
        )
    elif head.loss == "kl_divergence" and (unbounded or negative):
        yield Mismatch(
            title="The Kullback-Leibler divergence gets an output that is not a distribution",
            statement=f"The output {head.output.name!r} lies between {_range(head)}, and not from 0 to 1.",
            consequence="Keras clips it to [1e-7, 1]: outside, the gradient is 0.",
            measured=low,
            expected=0.0,
            prescription=compile_with(
                "'kl_divergence'",
                "Turn the output into a distribution with a softmax",
                "The divergence compares distributions: positive numbers that sum to 1.",
                more=last_layer(head.units, "softmax"),
            ),
        )


def reaches_partly(head: Head) -> bool:
    """Return whether the last activation cannot reach some of the targets, so few that a net may train well with it."""
    return MIN_UNREACHED_SHARE <= unreached_share(head) < CERTAIN_UNREACHED_SHARE


def unreached_share(head: Head) -> float:
    """Return the share of the targets that the last activation cannot reach; 0 where that is not known."""
    if head.target is None or head.activation not in REACH:
        return 0.0
    return sum(getattr(head.target, end) or 0.0 for end in REACH[head.activation][1])


def _out_of_reach(head: Head) -> Iterator[Mismatch]:
    share, target = unreached_share(head), head.target
    if target is None or share < MIN_UNREACHED_SHARE or head.loss not in BY_ENTRY:
        return
    words, _ = REACH[str(head.activation)]
    yield Mismatch(
        title=f"{rounded(100 * share)}% of the targets are outside the range of a {head.activation}",
        statement=(
            f"The output {head.output.name!r} passes through a {head.activation}, which reaches {words}; "
            f"{target.name} ranges from {rounded(target.min)} to {rounded(target.max)}, {rounded(100 * share)}% "
            "of it out of reach."
        ),
        consequence=(
            "The last layer is pushed to the limit of its activation, where the derivative is 0, and the error remains."
        ),
        measured=share,
        expected=0.0,
        severity=Severity.CRITICAL if share >= CERTAIN_UNREACHED_SHARE else Severity.WARNING,
        only_if_held_back=share < CERTAIN_UNREACHED_SHARE,
        prescription=compile_with(
            repr(head.loss),
            "End with a linear layer",
            "A linear output reaches every target; scale the targets to mean 0 and standard deviation 1 as well.",
            more=last_layer(head.units, None),
            risk="Predictions may then leave the natural range; clip them afterwards if that matters.",
        ),
    )


def _range(head: Head) -> str:
    low, high = number(head.measured.min), number(head.measured.max)
    return "ends that were not measured" if low is None or high is None else f"{rounded(low)} and {rounded(high)}"
