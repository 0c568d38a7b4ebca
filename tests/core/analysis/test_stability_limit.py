"""The limits against the recurrences themselves: below them a quadratic shrinks, above it grows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradrecipes.core.analysis.learning_rates import KNOWN, stability_limit

RATE, STEPS = 0.05, 4000


def plain(momentum: float, nesterov: bool):
    def update(memory, gradient):
        memory = momentum * memory - RATE * gradient
        return memory, momentum * memory - RATE * gradient if nesterov else memory

    return update


def averaged(beta: float, look_ahead: bool):
    def update(memory, gradient):
        memory = beta * memory + (1 - beta) * gradient
        direction = beta * memory + (1 - beta) * gradient if look_ahead else memory
        return memory, -RATE * direction

    return update


CASES = [
    ({"name": "SGD"}, plain(0.0, False)),
    ({"name": "SGD", "momentum": 0.9}, plain(0.9, False)),
    ({"name": "SGD", "momentum": 0.5, "nesterov": True}, plain(0.5, True)),
    ({"name": "SGD", "momentum": 0.95, "nesterov": True}, plain(0.95, True)),
    ({"name": "RMSprop"}, plain(0.0, False)),
    ({"name": "RMSprop", "momentum": 0.7}, plain(0.7, False)),
    ({"name": "Adagrad"}, plain(0.0, False)),
    ({"name": "Adam"}, averaged(0.9, False)),
    ({"name": "AdamW", "beta_1": 0.8}, averaged(0.8, False)),
    ({"name": "Adamax", "beta_1": 0.0}, averaged(0.0, False)),
    ({"name": "Nadam", "beta_1": 0.9}, averaged(0.9, True)),
    ({"name": "Nadam", "beta_1": 0.5}, averaged(0.5, True)),
]


def size_after(update, curvature: float) -> float:
    weight, memory, largest = 1.0, 0.0, 0.0
    for step in range(STEPS):
        memory, change = update(memory, curvature * weight)
        weight += change
        if abs(weight) > 1e6:
            return math.inf
        largest = max(largest, abs(weight)) if step > STEPS - 10 else 0.0
    return largest


@pytest.mark.parametrize("optimizer, update", CASES)
def test_the_limit_is_where_a_quadratic_turns_from_shrinking_to_growing(optimizer, update):
    limit = stability_limit(optimizer, RATE).limit
    assert size_after(update, 0.98 * limit) < 0.5
    assert size_after(update, 1.02 * limit) > 10


@pytest.mark.parametrize("factor, grows", [(0.97, False), (1.03, True)])
@pytest.mark.parametrize("arguments", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_keras_own_optimizer_turns_at_the_limit(arguments, factor, grows):
    import keras

    optimizer = keras.optimizers.SGD(RATE, **arguments)
    name = {"name": "SGD", **arguments}
    curvature = factor * stability_limit(name, RATE).limit
    weight = keras.Variable(1.0)
    optimizer.build([weight])
    sizes = [1.0]
    while len(sizes) < 300 and sizes[-1] < 1e6:
        optimizer.apply([keras.ops.convert_to_tensor(curvature * float(weight.numpy()))], [weight])
        sizes.append(abs(float(weight.numpy())))
    assert (max(sizes[-10:]) > 2) == grows


def test_which_hessian_is_meant():
    assert stability_limit({"name": "Adam"}, 1e-3).product == pytest.approx(38.0)  # METHODS, arXiv 2207.14484
    assert stability_limit({"name": "Adam"}, 1e-3).limit == pytest.approx(38_000.0)
    assert {name for name in KNOWN if not stability_limit({"name": name}, 0.1).preconditioned} == {"SGD"}
    assert stability_limit({"name": "SGD", "momentum": None}, 0.5).limit == 4.0


def test_what_is_not_known_and_what_is_wrong():
    assert stability_limit({"name": "Lion"}, 0.1) is None
    assert stability_limit({}, 0.1) is None
    assert stability_limit({"name": "SGD"}, 0.0).limit == math.inf
    for rate in (-0.1, np.nan):
        with pytest.raises(ValueError, match="learning_rate"):
            stability_limit({"name": "SGD"}, rate)
