"""The engine: causes lead to symptoms, the urgent stands first, a broken rule costs only itself."""

from __future__ import annotations

import logging

import pytest

from gradrecipes.core.findings import Finding, Kind, Severity
from gradrecipes.diagnosis import engine
from gradrecipes.diagnosis.engine import find, in_reading_order, linked
from gradrecipes.diagnosis.registry import Rule, rules


def finding(
    code: str, kind: Kind, severity: Severity, confidence: float = 0.5, leads_to: tuple[str, ...] = ()
) -> Finding:
    return Finding(code, code, kind, severity, confidence, "", leads_to=leads_to)


def entry(code: str, kind: Kind, *brings_about: str) -> Rule:
    return Rule(code, kind, code, 0, brings_about, False, lambda trace: None)


def test_a_cause_stands_before_the_symptoms_it_explains():
    found = [
        finding("symptom", Kind.SYMPTOM, Severity.CRITICAL, 1.0),
        finding("cause", Kind.CAUSE, Severity.WARNING),
    ]
    table = {"cause": entry("cause", Kind.CAUSE, "symptom", "absent"), "symptom": entry("symptom", Kind.SYMPTOM)}
    found = linked(found, table)
    assert [f.code for f in in_reading_order(found, table)] == ["cause", "symptom"]
    assert found[1].leads_to == ("symptom",)


def test_severity_then_confidence_sort_the_rest():
    found = [
        finding("mild", Kind.CAUSE, Severity.NOTICE, 1.0),
        finding("unsure", Kind.CAUSE, Severity.WARNING, 0.4),
        finding("sure", Kind.CAUSE, Severity.WARNING, 0.9),
        finding("grave", Kind.SYMPTOM, Severity.CRITICAL),
    ]
    assert [f.code for f in in_reading_order(found, rules())] == ["grave", "sure", "unsure", "mild"]


@pytest.mark.parametrize(
    "name, codes",
    [
        ("variance_4_at_30_layers", ["exploding_initialization", "exploding_gradient"]),
        ("std_1_at_5_layers", ["exploding_initialization", "exploding_gradient"]),
        ("rate_10", ["learning_rate_too_high", "nonfinite_loss", "exploding_gradient"]),
        ("rate_too_high_squared_loss", ["learning_rate_too_high", "nonfinite_loss", "exploding_gradient"]),
        ("isolated_bad_batch_skipped", ["nonfinite_loss"]),
        ("unscaled_inputs", ["nonfinite_loss", "exploding_gradient"]),
        ("sound_run", []),
    ],
)
def test_whole_runs(name, codes, trace_of):
    found = find(trace_of(name))
    assert [f.code for f in found] == codes
    if codes and found[0].kind is Kind.CAUSE:
        assert set(found[0].leads_to) == set(codes[1:])


def test_a_rule_that_fails_costs_only_itself(monkeypatch, caplog, trace_of):
    def broken(trace):
        raise ZeroDivisionError("by nothing")

    table = {**rules(), "broken": Rule("broken", Kind.CAUSE, "It fails", 0, (), False, broken)}
    monkeypatch.setattr(engine, "rules", lambda: table)
    with caplog.at_level(logging.ERROR):
        assert [f.code for f in find(trace_of("isolated_bad_batch_skipped"))] == ["nonfinite_loss"]
    assert "The rule broken failed" in caplog.text


def test_find_changes_nothing(trace_of):
    trace = trace_of("std_1_at_5_layers")
    before = (len(trace), len(trace.samples), repr(trace.description))
    find(trace)
    assert (len(trace), len(trace.samples), repr(trace.description)) == before
