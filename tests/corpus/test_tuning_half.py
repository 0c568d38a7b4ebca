"""The half of the corpus by which rules may be tuned holds what it should; `verify.py` proves that its programs do."""

from __future__ import annotations

import numpy as np
import pytest

from tests.corpus.case import Case
from tests.corpus.tuning_half import CASES
from tests.corpus.verify import surroundings

CAUSES = [
    "exploding_initialization",
    "vanishing_initialization",
    "plain_depth",
    "recurrent_gain",
    "unbounded_activation",
    "saturated_units",
    "dead_units",
    "exploding_batch_normalization",
    "missing_normalization",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "unscaled_inputs",
    "unscaled_targets",
    "nonfinite_data",
    "corrupt_batch",
    "loss_output_mismatch",
    "unsafe_loss",
    "float16_overflow",
    "optimizer_state",
    "embedding_spike",
    "batch_too_small",
]
FAILING = [case for case in CASES if case.cause is not None]


def test_every_cause_has_a_program_that_fails_by_it_and_sound_ones_stand_beside_them():
    assert {case.cause for case in FAILING} == set(CAUSES)
    assert len(CASES) - len(FAILING) >= 14


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_says_where_it_comes_from_and_what_mends_it(case: Case):
    assert sum(other.name == case.name for other in CASES) == 1
    assert case.source
    assert set(case.accepted) <= set(CAUSES) - {case.cause}
    assert (case.repaired is None) == (case.cause is None)


@pytest.mark.parametrize("name", ["squares_for_activations", "attention_mask_beyond_float16", "gray_autoencoder"])
def test_a_program_is_the_same_whenever_it_is_built(name: str):
    case = next(case for case in CASES if case.name == name)
    with surroundings(case.needs):
        one, other = case.build(), case.build()
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.model(one.x[:4]), other.model(other.x[:4]))
