"""The warm-up, around schedules and constants, and in a training that is compiled by XLA."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from gradrecipes.schedules import WarmUp

schedules = keras.optimizers.schedules


@pytest.mark.parametrize(
    "inner",
    [0.3, 1, schedules.ExponentialDecay(0.3, 10, 0.5), schedules.CosineDecay(0.3, 20), schedules.PolynomialDecay(1, 5)],
    ids=lambda inner: type(inner).__name__,
)
@pytest.mark.parametrize("start", [0.0, 0.01])
def test_it_climbs_in_a_line_and_then_follows(inner, start):
    warm = WarmUp(inner, steps=8, start=start)
    rates = np.array([float(warm(step)) for step in range(40)])
    follow = np.array([float(inner(step)) if callable(inner) else inner for step in range(32)])
    np.testing.assert_allclose(rates[8:], follow, rtol=1e-6)
    np.testing.assert_allclose(np.diff(rates[:9]), (follow[0] - start) / 9, rtol=1e-4)
    assert rates[0] == pytest.approx(start + (follow[0] - start) / 9, rel=1e-5)
    assert WarmUp.from_config(warm.get_config()).get_config() == warm.get_config()


def test_the_optimizer_takes_the_steps_it_says():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(WarmUp(0.1, steps=3)), loss=lambda y, p: -p, jit_compile=True)
    weights = [0.0]
    for _ in range(5):  # the gradient is -1: every step is the rate itself
        model.train_on_batch(np.ones((2, 1)), np.ones((2, 1)))
        weights.append(float(model.get_weights()[0][0, 0]))
    np.testing.assert_allclose(np.diff(weights), [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    "error, arguments",
    [
        (ValueError, {"schedule": -0.1, "steps": 3}),
        (ValueError, {"schedule": 0.1, "steps": 0}),
        (ValueError, {"schedule": 0.1, "steps": 2.5}),
        (ValueError, {"schedule": 0.1, "steps": 2, "start": float("nan")}),
        (TypeError, {"schedule": "cosine", "steps": 2}),
        (TypeError, {"schedule": lambda: 0.1, "steps": 2}),
    ],
)
def test_refusals(error, arguments):
    with pytest.raises(error, match="Received"):
        WarmUp(**arguments)
