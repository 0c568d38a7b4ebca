"""What an optimizer updates, and what it clips first."""

from __future__ import annotations

import keras
import numpy as np

from gradrecipes.compat.optimizer_update import clipped_first, updated_variables
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
