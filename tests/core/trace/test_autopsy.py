"""An autopsy as a value: its order, its text, its plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.trace.autopsy import ROWS_SHOWN, Autopsy, LayerReading, Offender, OffenderKind, listed

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def offender(**changes) -> Offender:
    facts = {"kind": OffenderKind.INPUT, "name": "x['pixels']", "found": "nan", "sentence": "The data hold a NaN."}
    return Offender(**(facts | changes))


def reading(layer: str = "dense", **changes) -> LayerReading:
    facts = {"kind": "Dense", "dtype": "float32", "input_rms": 1.0, "output_rms": 2.0, "output_max": 5.0}
    facts |= {"nonfinite_share": 0.25, "output_gradient_norm": 0.1, "weight_gradient_norm": math.nan}
    return LayerReading(layer=layer, **(facts | changes))


def test_the_kinds_are_those_of_a_training_step():
    assert {kind.value for kind in OffenderKind} == {
        *("input", "target", "sample_weight", "weight", "layer_output", "loss", "gradient", "optimizer_slot"),
    }


def test_offenders_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        offender().name = "y"


@pytest.mark.parametrize(("found", "finite"), [("nan", False), ("inf", False), (math.inf, False), (1e6, True)])
def test_only_a_number_is_finite(found, finite):
    assert offender(found=found).finite is finite


def test_the_first_offender_leads():
    first, second = offender(samples=(5,)), offender(kind=OffenderKind.LOSS, name="loss", found="inf")
    result = Autopsy((first, second), reached=("The loss is nan.",), notes=("A note.",), batch_size=8, loss=math.nan)
    assert result.first is first
    assert not result.healthy
    text = str(result)
    assert text.index("First offender: input x['pixels'], sample 5: nan") < text.index("The loss is nan.")
    assert text.index("The loss is nan.") < text.index("Offender 2: loss loss: inf") < text.index("Note: A note.")


def test_without_offenders_it_is_healthy():
    result = Autopsy(layers=(reading(),), batch_size=4, loss=0.5)
    assert result.healthy
    assert result.first is None
    assert not dataclasses.replace(result, complete=False).healthy
    assert result.heaviest_sample is None
    assert "Nothing to blame" in str(result)


def test_the_heaviest_sample_adds_most_to_the_gradient():
    result = Autopsy(sample_gradient_norms=(1.0, math.nan, 7.0, 3.0))
    assert result.heaviest_sample == 2
    assert Autopsy(sample_gradient_norms=(math.nan, math.nan)).heaviest_sample is None


def test_a_long_table_is_cut_in_the_terminal_only():
    result = Autopsy(layers=tuple(reading(f"dense_{number}") for number in range(ROWS_SHOWN + 3)))
    assert "... and 3 more layers" in str(result)
    assert len(result.to_dict()["layers"]) == ROWS_SHOWN + 3
    assert "nan" not in str(result).split("\n", 1)[1]  # a number that is missing is a dash


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ((3,), "sample 3"),
        ((1, 5, 9), "samples 1, 5 and 9"),
        (range(20), "20 samples (first 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 11)"),
    ],
)
def test_indices_are_listed_in_words(samples, text):
    assert listed(samples) == text


@given(NUMBERS, st.lists(NUMBERS, max_size=4), st.sampled_from(OffenderKind))
def test_everything_becomes_strict_json(number, norms, kind):
    found = offender(kind=kind, found=number, samples=(np.int64(3),), entries=((np.int64(3), 1),))
    result = Autopsy((found,), (reading(output_rms=number),), 4, number, tuple(norms), tuple(norms))
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["offenders"][0]["samples"] == [3]
    assert values["offenders"][0]["entries"] == [[3, 1]]
    assert values["loss"] == (number if math.isfinite(number) else str(number))
    assert set(values) == {field.name for field in dataclasses.fields(Autopsy)}
    assert set(values["offenders"][0]) == {field.name for field in dataclasses.fields(Offender)}
    assert set(values["layers"][0]) == {*(field.name for field in dataclasses.fields(LayerReading)), "growth"}
    assert str(result)
