"""What was read from the data before a training: one record for each array of inputs, targets and sample weights."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gradrecipes.core.trace.record import Record

INPUTS = "the inputs"  # what a linear function of them is linear in
TWIN = "the same net"  # in its place, of one that was trained with standard settings
CLASS_WEIGHT = "class_weight"  # name of the weights of samples that those of their classes make


@dataclass(frozen=True)
class Column(Record):
    """One column of an array, over its finite entries.

    Args:
        column: Index on the last axis.
        mean: Mean.
        std: Standard deviation.
        max_abs: Largest magnitude.
    """

    column: int
    mean: float | None = None
    std: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True)
class Columns(Record):
    """The columns of the last axis of an array, over their finite entries.

    Args:
        count: How many there are.
        constant: How many have the same value for every sample.
        empty: The first 20 without a finite entry.
        nonfinite: The first 20 with an entry that is not finite.
        std_min: Smallest standard deviation of a column that is not constant.
        std_max: Largest standard deviation.
        rms_median: Median over the columns of the root mean square.
        rms_max: Largest root mean square.
        mean_abs_max: Largest magnitude of a mean.
        largest: The five with the largest root mean square.
    """

    count: int
    constant: int = 0
    empty: tuple[int, ...] = ()
    nonfinite: tuple[int, ...] = ()
    std_min: float | None = None
    std_max: float | None = None
    rms_median: float | None = None
    rms_max: float | None = None
    mean_abs_max: float | None = None
    largest: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Outlier(Record):
    """A sample that lies at least 30 times further from a column's median than any other sample.

    Args:
        sample: Index of the sample.
        column: Index on the last axis.
        value: The value.
        typical: Distance of the furthest other sample from the median.
        factor: Distance of this sample over `typical`.
    """

    sample: int
    column: int
    value: float
    typical: float
    factor: float


@dataclass(frozen=True)
class ArrayReading(Record):
    """One array of the data; statistics are over its finite entries.

    Args:
        name: Such as `"x"`, `"x[0]"`, `"x['pixels']"`, `"y"`.
        shape: Without samples.
        samples: How many; None where that is not known.
        dtype: As it was given.
        numeric: Whether it holds numbers that could be read; else all below is None.
        unreadable: Why not, or None.
        integer_valued: Whether all entries are whole numbers.
        feeds_embedding: Whether the model only looks its numbers up in a table.
        finite: How many entries are finite.
        nonfinite: How many entries are not.
        nonfinite_samples: The first 20 samples with such an entry.
        nonfinite_share: Share of the samples with such an entry.
        rms: Root mean square.
        rms_without_outliers: The same without the outlying samples.
        mean: Mean.
        std: Standard deviation.
        min: Smallest entry.
        max: Largest entry.
        median_abs: Median magnitude.
        columns: Of the last axis; None for indices and arrays without a finite entry.
        outliers: Up to 20 outlying samples.
        outlying_samples: How many samples lie so far out.
        unique: Distinct values, up to 1000, else None; this and all below is read of targets only.
        values: The first 20 distinct values.
        gap_marks: Values of a single column that stand for a missing one, such as -999: far outside all others.
        marked_share: Share of the entries that are one of these.
        integer_share: Share of the entries that are whole numbers.
        sums_to_one: Share of the rows that are distributions; None for vectors.
        row_sum_max: Largest sum of a row.
        one_hot: Whether nearly all rows are one-hot.
        share_below_0: Share of the entries below -0.05.
        share_below_minus_1: Share of the entries below -1.05.
        share_above_1: Share of the entries above 1.05.
        share_zero: Share of the entries that are exactly 0.
        between_batches: Share of the variance of the classes that lies between the batches as they come: 0 of mixed
            ones, 1 where each holds a single class; None of arrays, which are shuffled, and of small batches.
    """

    name: str
    shape: tuple[int, ...] = ()
    samples: int | None = None
    dtype: str = ""
    numeric: bool = False
    unreadable: str | None = None
    integer_valued: bool = False
    feeds_embedding: bool = False
    finite: int = 0
    nonfinite: int = 0
    nonfinite_samples: tuple[int, ...] = ()
    nonfinite_share: float = 0.0
    rms: float | None = None
    rms_without_outliers: float | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    median_abs: float | None = None
    columns: Columns | None = None
    outliers: tuple[Outlier, ...] = ()
    outlying_samples: int = 0
    unique: int | None = None
    values: tuple[float, ...] = ()
    gap_marks: tuple[float, ...] = ()
    marked_share: float = 0.0
    integer_share: float | None = None
    sums_to_one: float | None = None
    row_sum_max: float | None = None
    one_hot: bool = False
    share_below_0: float | None = None
    share_below_minus_1: float | None = None
    share_above_1: float | None = None
    share_zero: float | None = None
    between_batches: float | None = None


@dataclass(frozen=True)
class DataReading(Record):
    """The arrays of the data.

    Args:
        samples: How many.
        complete: Whether all data were read.
        inputs: In flattened order.
        targets: In flattened order.
        sample_weight: In flattened order; empty without sample weights.
    """

    samples: int = 0
    complete: bool = True
    inputs: tuple[ArrayReading, ...] = ()
    targets: tuple[ArrayReading, ...] = ()
    sample_weight: tuple[ArrayReading, ...] = ()

    def arrays(self, *parts: str) -> tuple[ArrayReading, ...]:
        """Return the arrays that hold numbers, of `"inputs"`, `"targets"`, `"sample_weight"`; without parts, of all."""
        parts = parts or ("inputs", "targets", "sample_weight")
        return tuple(array for part in parts for array in getattr(self, part) if array.numeric)


class Setting(StrEnum):
    """Name in words what may differ between a program and the same net with standard settings."""

    OPTIMIZER = "the optimizer with its rates"
    LOSS = "the loss, with the last activation and the train step"
    INPUTS = "the scale of the inputs"
    TARGETS = "the scale of the targets"
    WEIGHTS = "the initial weights"
    REGULARIZATION = "the regularization"


@dataclass(frozen=True)
class LinearReading(Record):
    """What a linear function, or the net with standard settings, learns of a target that was held back from it.

    Args:
        target: Place of the target among the flattened ones.
        constant: Mean loss of a constant prediction: the cross-entropy of classes, in nats, or the squared error of
            numbers over their variance.
        linear: The same of the linear function.
        noise: Standard error of the difference.
        rows: How many rows were judged.
        of: What the function is linear in.
        own: Mean loss, the program's own, of the net's answers to these rows at the end, which it was trained on; None
            where that was not measured, as of all below.
        own_linear: The same of the linear function.
        own_constant: The same of the constant prediction.
        own_noise: Standard error of `own` minus `own_linear`.
        faults: Settings of the program without which the net with standard settings learns far more, the first of them
            the most; empty of a function.
        rate: Factor of the learning rate at which the program's optimizer does not fall behind either, or None.
        loss: Line that makes the loss that fits a single target, where the program's own is at fault; else empty.
    """

    target: int = 0
    constant: float = 0.0
    linear: float = 0.0
    noise: float = 0.0
    rows: int = 0
    of: str = INPUTS
    own: float | None = None
    own_linear: float | None = None
    own_constant: float | None = None
    own_noise: float | None = None
    faults: tuple[str, ...] = ()
    rate: float | None = None
    loss: str = ""

    @property
    def clear(self) -> bool:
        """Whether the target can be learned from the inputs: far beyond chance, and by more than a tenth."""
        return self.constant - self.linear > 4.0 * self.noise and self.linear < 0.9 * self.constant

    def share(self, ended: float | None = None) -> float | None:
        """Return the gain of the net over a constant prediction, over that of the linear function; None if not clear.

        Both gains are of the program's own loss, that of the net of rows that it was trained on. A share of less than 0
        is that of a net that is worse than a constant.

        Args:
            ended: Loss of the last steps, where it is the same one: moving averages may be too young for `own`.
        """
        own, linear, constant, noise = self.own, self.own_linear, self.own_constant, self.own_noise
        if own is None or linear is None or constant is None or noise is None or not self.clear:
            return None
        own = own if ended is None else min(own, ended)
        return (constant - own + 2.0 * noise) / (constant - linear) if constant - linear > 4.0 * noise else None


@dataclass(frozen=True)
class HeldBackReading(Record):
    """Whether an output learned what belongs to a sample: on rows of the trial, and on others of the same data.

    Args:
        output: Position among the flattened outputs.
        trained: By how much the loss of the trial's rows is higher with the targets of other rows, in the mean.
        held: The same of rows that the trial was not trained on.
        noise: Standard error of `held`.
        trained_noise: Standard error of `trained`.
        rows: How many rows were held back; 0 where none were, and `held` is `trained` again.
        own: Mean loss of the trial's rows with their own targets, as the net answers after the training.
        own_noise: Standard error of `own`.
        validated: What `held` is, of the validation data; None where there are none.
        validated_noise: Standard error of `validated`.
    """

    output: int = 0
    trained: float = 0.0
    held: float = 0.0
    noise: float = 0.0
    trained_noise: float = 0.0
    rows: int = 0
    own: float = 0.0
    own_noise: float = 0.0
    validated: float | None = None
    validated_noise: float = 0.0

    @property
    def unlike(self) -> bool:
        """Whether the answers to the trial's rows fit the targets of other rows as well, within chance."""
        return self.trained <= 3.0 * self.trained_noise and self.trained <= 0.25 * (self.own + self.trained)

    @property
    def memorized(self) -> bool:
        """Whether something was learned of the trial's rows, far beyond chance, and of others not a quarter of it."""
        learned = self.trained > 4.0 * self.trained_noise
        return learned and self.held < self.noise and self.held + 2.0 * self.noise < 0.25 * self.trained

    @property
    def lost_in_validation(self) -> bool:
        """Whether what was learned holds for rows held back, and of the validation data not a quarter of it does."""
        if self.validated is None or not self.rows or not self.held > 4.0 * self.noise:
            return False
        return self.validated + 2.0 * self.validated_noise < 0.25 * (self.held - 2.0 * self.noise)


@dataclass(frozen=True)
class NoiseReading(Record):
    """The noise scale of the gradient.

    Args:
        noise_scale: In samples.
        low: Lower end of its interval.
        high: Upper end.
        batch_size: Samples in a batch of the training.
    """

    noise_scale: float | None = None
    low: float | None = None
    high: float | None = None
    batch_size: int | None = None
