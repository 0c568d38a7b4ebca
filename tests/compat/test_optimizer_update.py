"""What an optimizer updates, and what it clips first."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.compat.control_flow import optimized, rare_cond
from gradrecipes.compat.optimizer_update import (
    AS_WRITTEN,
    clipped_first,
    decayed_as_in_a_graph,
    runs_as_written,
    scalars_read_once,
    updated_variables,
)
from tests.seeds import begin_anew


def built(**arguments) -> tuple[keras.optimizers.Optimizer, keras.Variable]:
    begin_anew()
    weight = keras.Variable([0.0, 0.0])
    optimizer = keras.optimizers.SGD(1.0, **arguments)
    optimizer.build([weight])
    return optimizer, weight


def test_the_variables_are_those_it_was_built_with():
    optimizer, weight = built()
    assert [id(variable) for variable in updated_variables(optimizer)] == [id(weight)]


def test_gradients_are_clipped_by_the_function_then_as_the_optimizer_was_compiled():
    optimizer, weight = built(clipvalue=1.0)
    with clipped_first(optimizer, lambda gradients: [gradient * 0.25 for gradient in gradients]):
        optimizer.apply([keras.ops.array([2.0, 8.0])], [weight])
    optimizer.apply([keras.ops.array([0.0, 8.0])], [weight])
    np.testing.assert_allclose(np.array(weight), [-0.5, -2.0])


def test_of_accumulated_gradients_the_mean_is_clipped():
    optimizer, weight = built(gradient_accumulation_steps=2)
    seen = []
    with clipped_first(optimizer, lambda gradients: seen.extend(gradients) or gradients):
        optimizer.apply([keras.ops.array([2.0, 4.0])], [weight])
        optimizer.apply([keras.ops.array([4.0, 8.0])], [weight])
    assert np.array(seen[-1]).tolist() == [3.0, 6.0]


SETTINGS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.5},
    "Lion": {"clipnorm": 1.0},
    "Nadam": {"global_clipnorm": 1.0},
}


def updated(kind: str, *, guarded: bool, **settings) -> list[np.ndarray]:
    """Return weights and slots after eight updates by a compiled function, in a condition or without one."""
    random = np.random.default_rng(0)
    weights = [keras.Variable(random.normal(size=shape).astype("float32")) for shape in ((64, 64), (512, 300))]
    optimizer = getattr(keras.optimizers, kind)(0.01, **settings)
    optimizer.build(weights)

    @tf.function(autograph=False)
    def step(go, *gradients):
        def apply():
            with scalars_read_once(optimizer), decayed_as_in_a_graph(optimizer):
                optimizer.apply(list(gradients), weights)
            return tf.ones(())

        if not guarded:
            return optimizer.apply(list(gradients), weights)
        return rare_cond(go, apply if runs_as_written(optimizer) else optimized(apply), lambda: tf.ones(()))

    for _ in range(8):
        scale = 10.0 ** random.integers(-4, 2)
        step(tf.constant(True), *[tf.constant(random.normal(size=w.shape) * scale, tf.float32) for w in weights])
    return [np.array(variable) for variable in [*weights, *optimizer.variables]]


@pytest.mark.parametrize("kind", [*sorted(AS_WRITTEN), "RMSprop"])
def test_an_update_within_a_condition_gives_the_bits_of_one_without(kind):
    settings = {"weight_decay": 0.01, "use_ema": True, **SETTINGS.get(kind, {})}
    for mine, plain in zip(
        updated(kind, guarded=True, **settings), updated(kind, guarded=False, **settings), strict=True
    ):
        np.testing.assert_array_equal(mine, plain)


def test_an_update_that_accumulates_or_divides_by_a_root_is_left_to_the_graph_optimizer():
    assert runs_as_written(keras.optimizers.Adam())
    assert not runs_as_written(keras.optimizers.Adam(gradient_accumulation_steps=3))
    assert not runs_as_written(keras.optimizers.RMSprop())
