"""The half of the corpus by which rules may be tuned."""

from tests.corpus.tuning_half import (
    activations,
    convolutional,
    dense,
    generative,
    healthy_dense,
    healthy_images,
    healthy_tables,
    losses,
    optimizers,
    recurrent,
    tables,
    text,
    unsafe,
)

CASES = (
    *recurrent.CASES,
    *convolutional.CASES,
    *dense.CASES,
    *activations.CASES,
    *losses.CASES,
    *unsafe.CASES,
    *tables.CASES,
    *optimizers.CASES,
    *text.CASES,
    *generative.CASES,
    *healthy_images.CASES,
    *healthy_dense.CASES,
    *healthy_tables.CASES,
)
