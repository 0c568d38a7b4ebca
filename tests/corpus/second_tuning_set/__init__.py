"""A second set by which rules may be tuned, written by somebody who knew no rule."""

from tests.corpus.second_tuning_set import (
    activations,
    data_faults,
    half_precision,
    healthy_images,
    healthy_sequences,
    healthy_tables,
    initialization,
    losses,
    normalization,
    rates,
    sequences,
)

CASES = (
    *initialization.CASES,
    *activations.CASES,
    *sequences.CASES,
    *data_faults.CASES,
    *losses.CASES,
    *half_precision.CASES,
    *rates.CASES,
    *normalization.CASES,
    *healthy_images.CASES,
    *healthy_tables.CASES,
    *healthy_sequences.CASES,
)
