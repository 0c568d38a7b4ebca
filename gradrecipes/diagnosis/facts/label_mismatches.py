"""Labels that do not fit the output: out of range, of another shape, not a distribution, of the wrong sign."""

from __future__ import annotations

from collections.abc import Iterator

from gradrecipes.core.findings import Prescription, Severity
from gradrecipes.diagnosis.facts.data_facts import ArrayReading, Head
from gradrecipes.diagnosis.facts.mismatch import (
    BINARY,
    CATEGORICAL,
    SPARSE,
    Mismatch,
    class_of,
    compile_with,
    from_logits,
    last_layer,
    shape_mismatches,
)
from gradrecipes.diagnosis.facts.readings import number, rounded
from gradrecipes.diagnosis.prescriptions import prescription

A_HAIR = 1e-3  # by which rounding may move a label out of its range
TARGET_MARGIN = 0.05  # by which a target of a binary cross-entropy may leave [0, 1], as in interpolated images
MAX_EMPTY_ROW_SHARE = 0.01  # share of rows that need not be distributions: rows of zeros have no label
WRONG_SIGN_SHARE = 0.05  # share of targets of the wrong sign
MIN_LABELS_PER_SAMPLE = 1.5  # mean number of ones in a row from which most samples have several labels
MIN_SAMPLES_OF_ONE = 20  # of fewer samples, all may well be of one class by chance
DIVERGENCES = ("kl_divergence", "kullback_leibler_divergence")  # as Keras' function and its class are called
MIN_RANKED_CLASSES = 100  # classes above which a softmax over several labels may rank items, as in arXiv 1802.05814


def label_mismatches(head: Head) -> Iterator[Mismatch]:
    """Yield the mismatches between targets, a loss of Keras and the output."""
    if head.target is None or head.target.min is None:
        return
    if head.known:
        yield from shape_mismatches(head)
    if head.known and head.loss in CATEGORICAL | BINARY:
        yield from _several_labels(head, head.target)
    if head.known and head.loss in SPARSE:
        yield from _class_indices(head, head.target)
    elif head.known and head.loss in CATEGORICAL:
        yield from _distributions(head, head.target)
    elif head.known and head.loss in BINARY:
        yield from _yes_or_no(head, head.target)
    elif head.known and head.loss == "ctc":
        yield from _too_many_labels(head, head.target)
    elif head.known:
        yield from _signs(head, head.target)
    if head.measured.pairs_samples is False:
        yield all_with_all(f"The loss {head.name!r}", head.target.name)


def one_label(head: Head) -> Mismatch | None:
    """Return the mismatch of a loss that tells classes apart, where all samples of arrays are of one class."""
    target = head.target
    if target is None or not head.known or head.loss not in CATEGORICAL | BINARY | SPARSE:
        return None
    if (target.samples or 0) < MIN_SAMPLES_OF_ONE or target.between_batches is not None:
        return None
    columns = target.columns
    same_rows = target.one_hot and columns is not None and columns.constant == columns.count > 1
    if target.unique != 1 and not same_rows:
        return None
    what = "the same row" if same_rows else f"{target.values[0]:g}"
    return Mismatch(
        title=f"All targets are {what}: there is nothing to tell apart",
        statement=f"Each of the {target.samples:,} samples has {what} in {target.name}.",
        consequence="The net learns to give this one answer to everything: the loss falls to 0, the accuracy is 1, and "
        "nothing was learned.",
        measured=1.0,
        expected=2.0,
        prescription=prescription("look_at_labels"),
        sure=0.95,
    )


def _class_indices(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    ignored = number(head.output.config.get("ignore_class"))
    values = [value for value in target.values if value != ignored]
    complete = target.unique is not None and target.unique <= len(target.values)
    low = values[0] if ignored is not None and values else number(target.min)
    high = (values[-1] if complete and values else None) if ignored is not None else number(target.max)
    share = number(target.integer_share)
    if share is not None and share < 1.0 and not target.nonfinite:
        yield Mismatch(
            title="Class numbers that are not whole",
            statement=f"{rounded(100 * (1 - share))}% of {target.name} are not whole; {head.loss} truncates them.",
            consequence="Targets with fractions are measurements: truncated, they become other labels, or all 0.",
            measured=share,
            expected=1.0,
            prescription=compile_with(
                "'mean_squared_error'",
                "For measurements use a regression loss",
                "A cross-entropy chooses among classes; a squared error measures how far off a number is.",
                more=last_layer(1, None),
            ),
        )
        return
    units = head.units
    beyond = high is not None and units is not None and high >= units
    if not beyond and not (low is not None and low < 0):
        return
    one = units == 1
    classes = target.unique
    yield Mismatch(
        title=(
            f"Labels from {rounded(low)} to {rounded(high)} for {units} unit{'' if one else 's'}"
            if high is not None
            else f"Labels from {rounded(low)}: class numbers start at 0"
        ),
        statement=(
            f"{target.name} ranges from {rounded(low)} to {rounded(target.max)}, while {head.output.name!r} has "
            f"{units} unit{'' if one else 's'}: classes are numbered from 0 to {(units or 1) - 1}."
        ),
        consequence="A label without a unit is an error on a CPU, and NaN or a silently wrong loss on a GPU.",
        measured=high if beyond else low,
        expected=float((units or 1) - 1) if beyond else 0.0,
        prescription=prescription("number_classes", classes=classes or "len(classes)", ending=_ending(head)),
        sure=1.0,
    )


def _ending(head: Head) -> str:
    return "" if head.from_logits else ", activation='softmax'"


def _too_many_labels(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    """Yield label sequences longer than the output, for which CTC has no path. A label of 0 is padding."""
    if head.shape is None or len(head.shape) != 2 or len(target.shape) != 1:
        return
    steps, labels = head.shape[0], target.shape[0] * (1.0 - (number(target.share_zero) or 0.0))
    if labels <= steps:
        return
    yield Mismatch(
        title=f"{rounded(labels)} labels for {steps} output steps: CTC has no path",
        statement=(
            f"{target.name} holds {rounded(labels)} labels a sample, and {head.output.name!r} has {steps} steps; "
            "CTC needs at least a step for each label."
        ),
        consequence="The probability of such a sample is 0: its loss is a constant or infinite, without a gradient.",
        measured=float(steps),
        expected=labels,
        prescription=prescription("more_output_steps", factor=-int(-labels // steps) * 2),
        sure=1.0,
    )


def _several_labels(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    """Yield a softmax, of the net or of the loss, over targets that are several classes at once."""
    softmax = head.activation == "softmax" or (head.loss in CATEGORICAL and head.from_logits)
    mean, units = number(target.mean), head.units or 0
    if not softmax or mean is None or target.values != (0.0, 1.0) or not 1 < units <= MIN_RANKED_CLASSES:
        return
    ones = mean * units
    if ones < MIN_LABELS_PER_SAMPLE or target.shape[-1:] != (units,):
        return
    yield Mismatch(
        title=f"A softmax over targets with {rounded(ones)} labels a sample: only one class can win",
        statement=(
            f"The rows of {target.name} hold {rounded(ones)} ones in the mean; the {units} outputs of "
            f"{head.output.name!r} sum to 1."
        ),
        consequence="No two classes can have a probability above 1/2, and the loss cannot get near 0.",
        measured=ones,
        expected=1.0,
        severity=Severity.WARNING,
        sure=0.9,
        prescription=_binary_per_class(head),
    )


def _binary_per_class(head: Head) -> Prescription:
    return compile_with(
        from_logits("binary_crossentropy", True),
        "For several labels a sample: linear units and the binary cross-entropy of logits",
        "Each class is then predicted independently.",
        more=last_layer(head.units, None),
        risk="If each sample has one label, fix the targets instead: rows of zeros with a single 1.",
    )


def _distributions(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    largest, low = number(target.row_sum_max), number(target.min)
    if largest is None or low is None or (number(target.sums_to_one) or 0.0) >= 1.0 - MAX_EMPTY_ROW_SHARE:
        return
    if low >= -A_HAIR and largest <= 1.0 + TARGET_MARGIN:
        yield from _shifted_one_hot(head, target)  # else rows of zeros are samples without a label
        return
    yield Mismatch(
        title="The targets of the categorical cross-entropy are not distributions",
        statement=(
            f"Only {rounded(100 * (number(target.sums_to_one) or 0.0))}% of the rows of {target.name} sum to 1; "
            f"the largest sum is {rounded(largest)}, the smallest entry {rounded(low)}."
        ),
        consequence=(
            "The loss then raises several units at once while a softmax favours one, and with entries below 0 it "
            "has no lower bound."
        ),
        measured=largest,
        expected=1.0,
        severity=Severity.CRITICAL if low < -A_HAIR else Severity.WARNING,
        only_if_held_back=low >= -A_HAIR,
        prescription=_binary_per_class(head),
    )


def _shifted_one_hot(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    """Yield rows of zeros beside a class that never occurs: one-hot rows of labels that were not numbered from 0."""
    never = target.columns.constant if target.columns else 0
    if len(target.shape) != 1 or target.values != (0.0, 1.0) or not never:
        return
    without = 1.0 - (number(target.sums_to_one) or 0.0)
    yield Mismatch(
        title=f"Rows of zeros in {target.name}, and {never} of {target.shape[0]} classes without a sample",
        statement=(
            f"{rounded(100 * without)} % of the rows of {target.name} are all 0, and {never} of its "
            f"{target.shape[0]} columns {'is' if never == 1 else 'are'} the same for every sample."
        ),
        consequence=(
            "One-hot rows of labels that do not start at 0 look like that: the last class has no column. Its samples "
            "cost nothing whatever the net predicts, so the loss falls without them."
        ),
        measured=without,
        expected=0.0,
        severity=Severity.WARNING,
        sure=0.9,
        prescription=prescription("number_classes", classes="len(classes)", ending=_ending(head)),
    )


def _yes_or_no(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    low, high = number(target.min), number(target.max)
    if low is None or high is None or (low >= -TARGET_MARGIN and high <= 1.0 + TARGET_MARGIN):
        return
    values = target.values
    signs = target.unique == 2 and values == (-1.0, 1.0)
    classes = target.unique if target.integer_valued and low >= 0 else None
    if signs:
        advice = prescription(
            "probability_targets", title="Turn the labels from -1 and 1 into 0 and 1", lines="y = (y + 1) / 2\n"
        )
    elif classes and classes <= 1000 and head.units == 1 and high < 200:
        advice = compile_with(
            "'sparse_categorical_crossentropy'",
            "One unit for each class, a softmax, and the sparse categorical cross-entropy",
            "One sigmoid tells two classes apart, not more.",
            more=last_layer(int(high) + 1, "softmax"),
        )
    elif low >= 0:
        advice = prescription(
            "probability_targets",
            title="Scale the targets to the range from 0 to 1",
            lines=f"y = y / {rounded(high).replace(',', '')}\n",
        )
    else:
        advice = compile_with(
            "'mean_squared_error'",
            "For targets of both signs use a squared error after a linear layer",
            "A cross-entropy compares probabilities; these targets are not probabilities.",
            more=last_layer(head.units, None),
        )
    yield Mismatch(
        title=f"Targets from {rounded(low)} to {rounded(high)} for a loss on probabilities",
        statement=(
            f"{target.name} ranges from {rounded(low)} to {rounded(high)}"
            + (f" and holds {classes} different classes" if classes and classes > 2 and head.units == 1 else "")
            + f"; {class_of(head.loss)} takes targets from 0 to 1."
        ),
        consequence=(
            "Outside that range the loss has no lower bound: it falls below 0 without limit, while the weights "
            "grow and the net predicts the same class for every sample."
        ),
        measured=high if high > 1 else low,
        expected=1.0 if high > 1 else 0.0,
        prescription=advice,
    )


def _signs(head: Head, target: ArrayReading) -> Iterator[Mismatch]:
    low, negative = number(target.min), number(target.share_below_0) or 0.0
    values = set(target.values)
    if head.loss in ("hinge", "squared_hinge") and not (
        target.unique is not None and target.unique <= 3 and values <= {-1.0, 0.0, 1.0}
    ):
        yield Mismatch(
            title="The hinge loss expects labels of -1 and 1",
            statement=f"{target.name} ranges from {rounded(target.min)} to {rounded(target.max)}, not from -1 to 1.",
            consequence="The label is a factor of the loss: other numbers weight samples or reverse them.",
            severity=Severity.WARNING,
            prescription=compile_with(
                "keras.losses.CategoricalHinge()",
                "For several classes use the categorical hinge on one-hot rows",
                "It compares the right class with the best of the others.",
                more="y = keras.utils.to_categorical(y)\n",
            ),
        )
    elif head.loss in DIVERGENCES and (
        negative >= WRONG_SIGN_SHARE or (number(target.max) or 0.0) > 1.0 + TARGET_MARGIN
    ):
        yield Mismatch(
            title="A divergence of probabilities, and targets that are none",
            statement=f"{target.name} ranges from {rounded(target.min)} to {rounded(target.max)}; {head.loss} takes "
            "probabilities, which sum to 1, and moves what lies outside of 0 to 1 to the nearer end.",
            consequence="What scores above 1 or below 0 say is lost, and no answer has a loss of 0.",
            measured=number(target.max),
            expected=1.0,
            prescription=compile_with(
                "lambda y, p: keras.losses.kl_divergence(keras.ops.softmax(y), keras.ops.softmax(p))",
                "Turn scores into probabilities before they are compared",
                "A softmax makes the distribution that scores stand for.",
            ),
        )
    elif head.loss in ("poisson", "mean_squared_logarithmic_error") and negative >= WRONG_SIGN_SHARE:
        yield Mismatch(
            title=f"Negative targets for {head.loss}",
            statement=f"{rounded(100 * negative)}% of {target.name} are negative, down to {rounded(low)}.",
            consequence="Both losses take logarithms: a count or a size cannot be below 0.",
            measured=low,
            expected=0.0,
            severity=Severity.WARNING,
            prescription=compile_with(
                "'mean_squared_error'",
                "Use a squared error for targets of both signs",
                "It accepts targets of any sign.",
            ),
        )


def all_with_all(what: str, target: str) -> Mismatch:
    """Return the mismatch of a loss that compares every prediction with every target."""
    return Mismatch(
        title=f"{what} compares every prediction with every target",
        statement=(
            f"{target} has shape (batch,), the output (batch, 1): plain arithmetic broadcasts them to (batch, "
            "batch), and the loss stays the same when the targets are permuted."
        ),
        consequence="The link between target and sample is lost: the net learns only the mean.",
        prescription=prescription("target_axis"),
        sure=0.97,
    )
