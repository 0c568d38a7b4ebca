from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description, OptimizerDescription
from gradrecipes.core.trace.record import dumps, plain
from gradrecipes.core.trace.trace import Event
from gradrecipes.diagnosis.engine import CONFIDENCE_STEPS
from gradrecipes.report import findings as wording
from gradrecipes.report.diagnosis import Diagnosis

HOSTILE = "<script>alert('x')</script>\x1b[31m [bold red]"


def finding(code="x", *, kind=Kind.SYMPTOM, severity=Severity.WARNING, confidence=0.5, **others):
    others = {"title": f"title of {code}", "explanation": "Because.", **others}
    return Finding(code, kind=kind, severity=severity, confidence=confidence, **others)


def trace_of(steps=4):
    optimizer = OptimizerDescription("SGD", float("nan"), settings={"odd": np.float32("inf")})
    trace = Trace(["dense", "output"], description=Description(optimizer=optimizer))
    trace.extend(step=np.arange(steps), epoch=[0] * steps, batch=np.arange(steps), loss=np.ones(steps))
    return trace


def full():
    cause = finding(
        "exploding_initialization",
        kind=Kind.CAUSE,
        severity=Severity.CRITICAL,
        confidence=0.93,
        layer=HOSTILE,
        evidence=(Evidence("The gradient grows.", 1.6, float("inf"), "Theory"), Evidence("No number.")),
        prescriptions=(Prescription("use He initialization", "a = 1\nb = '<b>'\n", "Reason.", "Risk.", "He (2015)"),),
        leads_to=("nonfinite_loss", "never_seen"),
    )
    symptom = finding("nonfinite_loss", severity=Severity.CRITICAL, confidence=1.0, step=2)
    trace = trace_of()
    trace.add_event(Event("skip", 2, 0, 2, "nonfinite_loss", {"loss": float("nan"), "where": HOSTILE}))
    return Diagnosis((symptom, cause), trace)


findings = st.builds(
    finding,
    st.sampled_from("abcdef"),
    kind=st.sampled_from(Kind),
    severity=st.sampled_from(Severity),
    confidence=st.floats(0, 1),
)


@given(st.lists(findings, max_size=8))
def test_the_severe_come_first_then_causes_then_the_sure(found):
    diagnosis = Diagnosis(tuple(found), Trace())
    keys = [
        (f.severity.rank, f.kind is not Kind.CAUSE, -round(f.confidence * CONFIDENCE_STEPS)) for f in diagnosis.findings
    ]
    assert keys == sorted(keys)
    assert sorted(map(id, diagnosis.findings)) == sorted(map(id, found))
    assert (diagnosis.verdict != "unhealthy") == all(f.severity is Severity.NOTICE for f in found)


def test_a_mild_cause_stands_before_the_severe_symptom_it_explains():
    cause = finding("cause", kind=Kind.CAUSE, severity=Severity.NOTICE, confidence=0.2, leads_to=("symptom",))
    symptom = finding("symptom", severity=Severity.CRITICAL, confidence=1.0)
    diagnosis = Diagnosis((symptom, cause), trace_of())
    assert [f.code for f in diagnosis.findings] == ["cause", "symptom"]
    assert diagnosis.verdict == "unhealthy"
    assert diagnosis.summary == "Unhealthy: title of cause"


@pytest.mark.parametrize("severity", Severity)
def test_only_notices_leave_a_training_healthy(severity):
    verdict = Diagnosis((finding(severity=severity),), trace_of(1)).verdict
    assert verdict == ("undecided" if severity is Severity.NOTICE else "unhealthy")  # one step shows nothing


def test_the_verdict_of_an_empty_trace_claims_nothing():
    assert Diagnosis((), Trace()).summary == "Undecided: The record holds no training step."
    assert Diagnosis((), trace_of(1)).summary.startswith("Undecided: 1 step ")


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        full().trace = None


@pytest.mark.parametrize("arguments", [(["x"], Trace()), ((), None)])
def test_strangers_are_refused(arguments):
    with pytest.raises(TypeError, match=r"made of findings and a Trace. Received: (str|NoneType)"):
        Diagnosis(*arguments)


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def test_json_is_strict_and_round_trips():
    diagnosis = full()
    read = json.loads(diagnosis.to_json(), parse_constant=no_constants)
    assert read == diagnosis.to_dict()
    assert read["healthy"] is False
    assert read["findings"][0]["evidence"][0]["expected"] == "inf"
    optimizer = read["trace"]["description"]["optimizer"]
    assert (optimizer["learning_rate"], optimizer["settings"]) == ("nan", {"odd": "inf"})
    assert read["trace"]["events"][0]["details"]["loss"] == "nan"
    assert diagnosis.to_json().isascii()


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats(width=32).map(np.float32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(json_like)
def test_anything_becomes_strict_json(value):
    read = json.loads(dumps(value), parse_constant=no_constants)
    assert read == plain(value)


def test_arrays_sets_and_strangers_become_plain():
    assert plain({1: np.array([1.0, np.nan]), "b": {2}, "c": Ellipsis}) == {
        "1": [1.0, "nan"],
        "b": [2],
        "c": "Ellipsis",
    }


def test_the_full_text_says_everything_without_control_codes():
    text = full().full()
    for words in (
        "Unhealthy: title of exploding_initialization",
        "2 critical findings in 4 recorded steps",
        "very likely (93%)",
        "since epoch 1, batch 3 (step 2)",
        "measured 1.6; expected infinite; source: Theory",
        "leads to: title of nonfinite_loss",
        "never_seen (not seen in this run)",
        "Remedy 1: use He initialization",
        "       | b = '<b>'",
        "risk: Risk.",
        "1 x skip (nonfinite_loss)",
    ):
        assert words in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.parametrize("colour", [True, False])
def test_rich_prints_it_and_takes_no_layer_name_for_markup(colour):
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=120, force_terminal=colour, color_system="standard" if colour else None).print(full())
    text = stream.getvalue()
    assert "use He initialization" in text
    assert "[bold red]" in text
    assert ("\x1b[" in text) == colour
    assert "\x1b[31m [bold red]" not in text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.0, "virtually certain (100%)"),
        (0.999, "virtually certain (99%)"),
        (0.9, "very likely (90%)"),
        (0.5, "about as likely as not (50%)"),
        (0.0, "unlikely (0%)"),
    ],
)
def test_confidence_has_a_word(value, words):
    assert wording.confidence(value) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "NaN"), (float("-inf"), "minus infinite"), (3.0, "3"), (0.000123456, "0.0001235")],
)
def test_numbers_are_short(value, text):
    assert wording.number(value) == text


def test_a_step_that_is_not_in_the_record_is_named_all_the_same():
    assert wording.since(finding(step=99), trace_of()) == "since step 99"
    assert wording.since(finding(), trace_of()) == "from the start, before training"


@pytest.mark.parametrize(
    ("steps", "kind", "verdict"),
    [(22, Kind.SYMPTOM, "undecided"), (22, Kind.CAUSE, "unhealthy"), (440, Kind.SYMPTOM, "unhealthy")],
)
def test_symptoms_without_a_cause_are_too_early_to_tell_in_a_short_fit(steps, kind, verdict):
    diagnosis = Diagnosis((finding(kind=kind, severity=Severity.CRITICAL),), trace_of(steps))
    assert diagnosis.verdict == verdict
    assert ("22 steps are too few" in diagnosis.summary) == (verdict == "undecided")
