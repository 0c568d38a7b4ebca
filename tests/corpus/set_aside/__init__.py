"""The half of the corpus that no rule was tuned on: it is only ever scored."""

from __future__ import annotations

from tests.corpus.set_aside import (
    data_faults,
    depth,
    generative,
    healthy_sequences,
    healthy_shapes,
    healthy_training,
    losses,
    numerics,
    rates,
    sequences,
)

CASES = (
    *depth.CASES,
    *sequences.CASES,
    *data_faults.CASES,
    *losses.CASES,
    *rates.CASES,
    *numerics.CASES,
    *generative.CASES,
    *healthy_shapes.CASES,
    *healthy_training.CASES,
    *healthy_sequences.CASES,
)
