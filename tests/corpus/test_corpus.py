"""The sets of the corpus hold what they should; `verify.py` proves that their programs do."""

from __future__ import annotations

import importlib
from collections import Counter

import numpy as np
import pytest

from tests.corpus.case import BLIND, SETS, Case
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
# Causes that programs of the blind sets have, and that no rule is named after.
UNNAMED = [
    "attention_logit_growth",
    "failing_step",
    "frozen_weights",
    "missing_warmup",
    "unbalanced_loss_terms",
    "unbounded_loss",
    "unsafe_arithmetic",
]
FEWEST_SOUND = {"third_tuning_set": 10}  # of its programs only those stayed whose training was proved


def cases(name: str) -> tuple[Case, ...]:
    return importlib.import_module(f"tests.corpus.{name}").CASES


def test_every_cause_has_a_program_to_tune_by_that_fails_by_it():
    assert {case.cause for case in cases("tuning_half")} == {*CAUSES, None}


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_failing_programs_and_sound_ones_beside_them(name: str):
    sound = [case.cause for case in cases(name)].count(None)
    assert sound >= FEWEST_SOUND.get(name, 14)
    assert len(cases(name)) - sound >= 30


@pytest.mark.parametrize("name", SETS)
def test_a_case_says_where_it_comes_from_and_what_mends_it(name: str):
    for position, case in enumerate(cases(name)):
        label = f"number {position}" if name in BLIND else case.name
        assert case.name and case.source, label
        known = {*CAUSES, *UNNAMED, None} if name in BLIND else {*CAUSES, None}
        assert {case.cause, *case.accepted} <= known, label
        assert not {case.cause, None} & set(case.accepted), label
        assert (case.repaired is None) == (case.cause is None), label


@pytest.mark.parametrize("name", SETS)
def test_no_two_programs_of_a_set_have_one_name(name: str):
    assert max(Counter(case.name for case in cases(name)).values()) == 1


@pytest.mark.parametrize("name", ["squares_for_activations", "attention_mask_beyond_float16", "gray_autoencoder"])
def test_a_program_is_the_same_whenever_it_is_built(name: str):
    case = next(case for case in cases("tuning_half") if case.name == name)
    with surroundings(case.needs):
        one, other = case.build(), case.build()
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.model(one.x[:4]), other.model(other.x[:4]))
