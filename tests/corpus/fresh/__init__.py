"""A blind set: programs restated from public reports by somebody who knew no rule, for the last word only."""

from tests.corpus.fresh import (
    attention,
    depth,
    generators,
    heads,
    healthy_models,
    healthy_tables,
    likelihoods,
    nested,
    pairs,
    physics,
    rates,
    sequences,
)

CASES = (
    *nested.CASES,
    *attention.CASES,
    *likelihoods.CASES,
    *physics.CASES,
    *heads.CASES,
    *sequences.CASES,
    *generators.CASES,
    *pairs.CASES,
    *rates.CASES,
    *depth.CASES,
    *healthy_tables.CASES,
    *healthy_models.CASES,
)
