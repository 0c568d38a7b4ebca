"""The set for the last word: written by somebody who knew no rule, only ever scored as a whole, never opened."""

from tests.corpus.set_aside import (
    activations,
    batches,
    data_faults,
    half_precision,
    healthy_losses,
    healthy_nets,
    healthy_pairs,
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
    *normalization.CASES,
    *sequences.CASES,
    *batches.CASES,
    *losses.CASES,
    *half_precision.CASES,
    *data_faults.CASES,
    *rates.CASES,
    *healthy_nets.CASES,
    *healthy_pairs.CASES,
    *healthy_losses.CASES,
    *healthy_tables.CASES,
)
