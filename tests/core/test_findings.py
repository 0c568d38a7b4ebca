"""Findings, events and prescriptions as plain JSON values."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradrecipes.diagnosis
from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity, counted
from gradrecipes.core.trace.trace import Event


def finding(**changes) -> Finding:
    facts = {
        "code": "exploding_initialization",
        "title": "The weights start too large",
        "kind": Kind.CAUSE,
        "severity": Severity.CRITICAL,
        "confidence": 0.9,
        "explanation": "The signal grows from layer to layer.",
        "layer": "dense_7",
        "step": 3,
        "evidence": (Evidence("The norm grows 2.3-fold a layer.", 2.34, 1.0, "mean-field theory"),),
        "prescriptions": (Prescription("use He initialization", 'Dense(8, kernel_initializer="he_normal")'),),
        "leads_to": ("exploding_gradient",),
    }
    return Finding(**(facts | changes))


def strict(values) -> str:
    return json.dumps(values, allow_nan=False)


NUMBERS = st.none() | st.floats() | st.integers(-(10**6), 10**6) | st.floats(width=32).map(np.float32)


@given(measured=NUMBERS, expected=NUMBERS, step=st.none() | st.integers(0, 10**9).map(np.int64))
def test_every_finding_is_strict_json(measured, expected, step):
    found = finding(step=step, evidence=(Evidence("A fact.", measured, expected),), confidence=np.float32(0.5))
    read = json.loads(strict(found.to_dict()))
    assert read["step"] == step
    for given_number, name in ((measured, "measured"), (expected, "expected")):
        kept = read["evidence"][0][name]
        if given_number is None:
            assert kept is None
        elif math.isfinite(given_number):
            assert kept == float(given_number)
        else:
            assert kept in {"nan", "inf", "-inf"}
            assert math.isnan(float(kept)) if math.isnan(given_number) else float(kept) == given_number


def test_to_dict_holds_every_field_in_order():
    names = [field.name for field in dataclasses.fields(Finding)]
    assert list(finding().to_dict()) == names
    assert list(finding().to_dict()["evidence"][0]) == [field.name for field in dataclasses.fields(Evidence)]
    assert list(finding().to_dict()["prescriptions"][0]) == [field.name for field in dataclasses.fields(Prescription)]
    assert finding().to_dict()["severity"] == "critical"
    assert finding().to_dict()["kind"] == "cause"


def test_a_finding_of_the_whole_model_before_training_says_none():
    plain = finding(layer=None, step=None, evidence=(), prescriptions=(), leads_to=()).to_dict()
    assert plain["layer"] is None
    assert plain["step"] is None
    assert plain["evidence"] == plain["prescriptions"] == plain["leads_to"] == []


@pytest.mark.parametrize("confidence", [-0.1, 1.1, math.nan, math.inf])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match=r"between 0 and 1. Received: .*exploding_initialization"):
        finding(confidence=confidence)


def test_severities_sort_from_the_worst_and_read_as_their_names():
    assert sorted(Severity, key=lambda severity: severity.rank) == [
        Severity.CRITICAL,
        Severity.WARNING,
        Severity.NOTICE,
    ]
    assert f"{Severity.WARNING} {Kind.SYMPTOM}" == "warning symptom"


def test_nothing_can_be_changed_afterwards():
    for thing, name in ((finding(), "code"), (Evidence("A fact."), "statement"), (Event("stop", 0, 0, 0), "kind")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, "other")


def test_an_event_tells_when_and_why():
    event = Event("skip", step=103, epoch=1, batch=3, reason="nonfinite_gradient", details={"norm": 2.5})
    assert str(event) == "skip at epoch 2, batch 4: nonfinite_gradient"
    assert str(Event("epoch", 9, 0, 9)) == "epoch at epoch 1, batch 10"
    assert Event(**json.loads(strict(event.to_dict()))) == event


def test_an_events_dict_is_its_own():
    event = Event("skip", 0, 0, 0, details={"layers": ["dense"]})
    event.to_dict()["details"]["layers"].append("other")
    assert event.details == {"layers": ["dense"]}


def test_an_event_takes_numpy_counts_and_refuses_what_is_no_count():
    event = Event("skip", np.int64(3), np.int32(0), np.int32(3))
    assert json.loads(strict(event.to_dict()))["step"] == 3
    with pytest.raises(TypeError, match=r"`epoch` of an event must be a whole number.*epoch=None in the event 'stop'"):
        Event("stop", step=0, epoch=None, batch=0)


FIXED = re.compile(r"\{len\((read|growth\.links|layers)\)[^}]*\} (layers|steps)\\b")


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (1200, "1,200 layers")]
)
def test_one_is_singular(number, words):
    assert counted(number, "layer") == words


def test_a_plural_of_its_own_is_taken():
    assert counted(1, "batch", plural="batches") == "1 batch" and counted(3, "batch", plural="batches") == "3 batches"


def test_no_finding_counts_layers_without_it():
    sources = Path(gradrecipes.diagnosis.__path__[0]).rglob("*.py")
    assert [path.name for path in sources if FIXED.search(path.read_text())] == []
