"""Where only several changes together fix a run, they are one remedy; where one is enough, it stays one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradrecipes.core.findings import Finding, Kind, Prescription, Severity
from gradrecipes.diagnosis.engine import find, with_joint_remedy
from gradrecipes.diagnosis.prescriptions import scaling_lines
from tests.diagnosis.probed import BREAKS, diabetes, net, probed

WORSE = (1.0, 1e12)
FIXED = (1.0, 0.5)


def both_unscaled(**varied):
    x, y = diabetes()
    return probed(net(10, 1), x * 90 + 200, y, "mse", run=BREAKS, varied=varied)


def first_remedies(trace):
    return {finding.code: finding.prescriptions[0].title for finding in find(trace)}


def test_neither_alone_suffices():
    titles = first_remedies(both_unscaled(scaled_inputs=WORSE, scaled_targets=WORSE, all_scaled=FIXED))
    assert titles["unscaled_inputs"] == titles["unscaled_targets"] == "Scale the inputs and the targets together"


@pytest.mark.parametrize(
    "varied",
    [
        {"scaled_inputs": FIXED, "scaled_targets": WORSE, "all_scaled": FIXED},
        {"scaled_inputs": WORSE, "scaled_targets": FIXED, "all_scaled": FIXED},
        {"scaled_inputs": WORSE, "scaled_targets": WORSE, "all_scaled": WORSE},
        {"scaled_inputs": WORSE, "all_scaled": FIXED},
        {},
    ],
)
def test_one_suffices_or_nothing_is_proven(varied):
    assert not any("together" in title for title in first_remedies(both_unscaled(**varied)).values())


def test_initial_weights_are_a_part_of_it():
    trace = both_unscaled(scaled_inputs=WORSE, fitting_weights=WORSE, all_scaled=FIXED)
    remedy = Prescription("use He initialization", "import keras\n\nlayer = keras.layers.Dense(8)\n")
    texts = ("Title", Kind.CAUSE, Severity.CRITICAL, 0.9, "Because.")
    weights = Finding("exploding_initialization", *texts, prescriptions=(remedy,))
    inputs = replace(weights, code="unscaled_inputs")
    found = with_joint_remedy([weights, inputs], trace)
    first = found[0].prescriptions[0]
    assert first == found[1].prescriptions[0] and found[0].prescriptions[1] == remedy
    assert first.title == "Bring the inputs and the initial weights to unit size together"
    assert "keras.layers.Dense(8)" in first.code and "x_mean" in first.code
    compile(first.code, "remedy", "exec")


class Recorder:
    """A model that keeps what it was fitted on, and answers with 1 for each of its outputs."""

    def fit(self, x, y):
        self.x, self.y = x, y

    def predict(self, x):
        ones = np.ones((len(next(iter(x.values())) if isinstance(x, dict) else x), 1))
        return {name: ones for name in self.y} if isinstance(self.y, dict) else ones


ARRAY = np.random.default_rng(0).normal(50.0, 9.0, (40, 1))


@pytest.mark.parametrize(
    ("inputs", "target", "x", "y"),
    [
        ({"x": False}, "y", ARRAY, ARRAY),
        ({"x['a']": False, "x['b c']": False}, "y", {"a": ARRAY, "b c": ARRAY}, ARRAY),
        ({"x": False}, "y['price']", ARRAY, {"price": ARRAY, "other": ARRAY}),
        ({"x": False}, None, ARRAY, ARRAY),
    ],
)
def test_the_lines_scale_what_is_named_and_give_the_users_units(inputs, target, x, y):
    names = {"model": Recorder(), "x": x, "y": y}
    exec(scaling_lines(inputs, target), names)
    fed, learned, told = names["model"].x, names["model"].y, names["predictions"]
    for array in fed.values() if isinstance(fed, dict) else [fed]:
        assert array.mean() == pytest.approx(0.0, abs=1e-6) and array.std() == pytest.approx(1.0, rel=1e-6)
    learned, told = (one["price"] if isinstance(one, dict) else one for one in (learned, told))
    expected = (ARRAY.mean(), ARRAY.std()) if target is None else (0.0, 1.0)
    assert (learned.mean(), learned.std()) == pytest.approx(expected, abs=1e-6)
    assert told[0, 0] == pytest.approx(1.0 if target is None else ARRAY.mean() + ARRAY.std(), rel=1e-6)


def test_pixels_keep_their_range():
    names = {"model": Recorder(), "x": np.array([[0.0], [255.0]]), "y": np.ones((2, 1))}
    exec(scaling_lines({"x": True}, None), names)
    assert names["model"].x.tolist() == [[-1.0], [1.0]]
