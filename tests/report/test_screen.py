"""One screen says what to do first, whatever was found."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import gradrecipes as gr
from gradrecipes.core.findings import Evidence, Finding, Kind, Prescription, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.report.diagnosis import Diagnosis
from gradrecipes.report.text import HEIGHT, MAX_NUMBERS, WIDTH, narrow, on_screen
from tests.diagnosis.conftest import FIRES, SILENT, TRACES

FIRING = sorted({name for names in FIRES.values() for name in names})
X = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
Y = X[:, :2].sum(axis=1, keepdims=True)


def net(depth=2, inputs=8, optimizer="adam", **options):
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(32, **{"activation": "relu", **options}) for _ in range(depth)]
    model = keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def with_a_nan():
    x = X.copy()
    x[3, 2] = np.nan
    return net(), x, Y


def unscaled():
    table = load_diabetes(scaled=False)
    return net(inputs=10, optimizer=keras.optimizers.SGD(0.01)), table.data, table.target


NETS = {
    "healthy": lambda: (net(kernel_initializer="he_normal"), X, Y),
    "nan": with_a_nan,
    "unscaled": unscaled,
    "stalls": lambda: (net(30, activation="sigmoid", optimizer=keras.optimizers.SGD(0.01)), X, Y),
    "explodes": lambda: (net(8, kernel_initializer=keras.initializers.RandomNormal(stddev=2.0)), X, Y),
    "wrong input": lambda: (net(), X[:, :5], Y),
}


def assert_one_screen(diagnosis):
    text = str(diagnosis)
    lines = text.split("\n")
    assert len(lines) <= HEIGHT == 40, text
    assert max(map(len, lines)) <= WIDTH == 80, text
    assert " ".join(lines[0].split()[:3]) == " ".join(diagnosis.summary.split()[:3])
    code = "\n".join(line for line, style in on_screen(diagnosis) if style == "green")
    compile(code, "screen", "exec")
    if diagnosis.verdict == "unhealthy" and diagnosis.findings[0].prescriptions:
        assert "Do this first: " in text and code
    assert all(finding.code in text for finding in diagnosis.findings[1:2])
    assert diagnosis.verdict != "unhealthy" or "print(diagnosis.full())" in lines[-1]
    return text


@pytest.mark.parametrize("name", FIRING)
def test_every_recorded_trouble_fits_on_one_screen(name):
    assert_one_screen(gr.diagnose(TRACES[name]()))


# The screens of recorded traces stand above; these are of whole diagnoses.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("healthy", "nan"))) for name in NETS]
)
def test_a_net_in_trouble_fits_on_one_screen(name):
    diagnosis = gr.diagnose(*NETS[name]())
    text = assert_one_screen(diagnosis)
    assert diagnosis.healthy is (name == "healthy")
    assert ("What was looked at" in text) is diagnosis.healthy
    assert all(finding.title in " ".join(diagnosis.full().split()) for finding in diagnosis.findings)


def test_where_inputs_and_targets_have_to_be_scaled_together_the_first_remedy_is_both_and_works():
    model, x, y = unscaled()
    diagnosis = gr.diagnose(model, x, y)
    remedy = diagnosis.findings[0].prescriptions[0]
    assert remedy.title == "Scale the inputs and the targets together"
    assert remedy.code.rstrip() in str(diagnosis)
    names = {"x": x, "y": y, "model": model}
    exec(remedy.code, names)
    assert np.mean((names["predictions"][:, 0] - y) ** 2) < np.var(y)


def many(count, **options):
    texts = ("word " * 60, Kind.CAUSE, Severity.CRITICAL, 0.9, "Because. " * 90)
    return tuple(Finding(f"code_{number}", *texts, **options) for number in range(count))


@pytest.mark.parametrize("findings", [1, 30])
@pytest.mark.parametrize("facts", [0, 40])
@pytest.mark.parametrize("lines", [*range(9), 12, 90])
def test_the_longest_texts_are_cut_and_the_code_is_whole_or_left_out(findings, facts, lines):
    evidence = tuple(Evidence(f"Fact {n} is long. " * 20, -np.inf if n else -1.2345e300, 1e300) for n in range(facts))
    line = "value = function(argument, 'a string, with commas', other=[1, 2, 3], more=4, last=5)  # why\n"
    remedies = (Prescription("do something " * 20, line * lines, "A reason. " * 40),) if lines else ()
    diagnosis = Diagnosis(many(findings, evidence=evidence, prescriptions=remedies), Trace())
    text = assert_one_screen(diagnosis)
    assert ("Fact 0" in text) is (facts > 0)
    assert len(set(re.findall(r"Fact \d+ is", text))) <= MAX_NUMBERS
    if lines == 1:
        assert "    last=5)" in text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("f(a, b)", ["f(a, b)"]),
        ("long_function(one, 'two, three', four)", ["long_function(one,", "    'two, three',", "    four)"]),
        ("x = 1  # a comment that is long", ["# a comment that is", "# long", "x = 1"]),
        ("print(f'{a, b} and {c} and {d}', e)", ["print(", "    f'{a, b} and {c} and {d}',", "    e)"]),
        ("a_name_without_any_bracket = 1234567", ["a_name_without_any_bracket = 1234567"]),
        ("a = 1\n\n\n\nb = 2", ["a = 1", "", "b = 2"]),
        ("not python at all, and too long", ["not python at all, and too long"]),
        (
            "s = '''\nkeeps, its, own, lines, all\n'''",
            ["s = '''", "keeps, its, own, lines, all", "'''"],
        ),
    ],
)
def test_code_is_broken_where_it_means_the_same(code, expected):
    assert narrow(code, 22) == expected


def test_sound_traces_get_a_short_bill():
    names = {name for names in SILENT.values() for name in names} & TRACES.keys()
    for name in sorted(names)[::10]:
        assert_one_screen(gr.diagnose(TRACES[name]()))
