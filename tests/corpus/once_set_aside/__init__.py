"""A half of the corpus that was scored blind first, then opened: rules may be tuned by it now."""

from __future__ import annotations

from tests.corpus.once_set_aside import (
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
