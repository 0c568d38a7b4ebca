"""A third set by which rules may be tuned, written by somebody who knew no rule."""

from tests.corpus.third_tuning_set import (
    activations,
    batches,
    data_faults,
    half_precision,
    healthy_curves,
    healthy_digits,
    healthy_tables,
    initialization,
    losses,
    normalization,
    optimizers,
    rates,
    sequences,
)

CASES = (
    *initialization.CASES,
    *activations.CASES,
    *sequences.CASES,
    *normalization.CASES,
    *losses.CASES,
    *half_precision.CASES,
    *data_faults.CASES,
    *rates.CASES,
    *optimizers.CASES,
    *batches.CASES,
    *healthy_digits.CASES,
    *healthy_tables.CASES,
    *healthy_curves.CASES,
)
