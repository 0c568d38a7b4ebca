from __future__ import annotations

import types
from pathlib import Path

import pytest

from gradrecipes.core.trace import Trace
from gradrecipes.doctor import diagnose
from gradrecipes.report.diagnosis import Diagnosis


def test_a_trace_becomes_a_diagnosis():
    trace = Trace(["dense"])
    diagnosis = diagnose(trace)
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis.trace is trace
    assert diagnosis.verdict == "undecided"


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("run.trace", r"Received: str 'run.trace'\..*Trace\.load\('run.trace'\)"),
        (Path("run.trace"), r"Trace\.load\('run.trace'\)"),
        (types.SimpleNamespace(trace=Trace()), r"diagnose\(monitor\.trace\)"),
        (None, r"Received: None\..*GradientMonitor\(\)"),
        ({"loss": [1.0]}, r"Received: a dict\..*GradientMonitor\(\)"),
    ],
)
def test_anything_else_is_told_how_to_become_a_trace(subject, words):
    with pytest.raises(TypeError, match=words):
        diagnose(subject)
