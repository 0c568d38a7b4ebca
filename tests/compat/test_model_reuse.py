import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.tracking import Tracker

from gradrecipes.compat.keras_private import compile_arguments
from gradrecipes.compat.model_reuse import copied_model
from gradrecipes.compat.random_state import global_tensorflow_seed_kept

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


class Custom(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(2)]
        self.tail = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
        self.twice = lambda value: 2.0 * value

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.tail(self.twice(x))


@pytest.fixture
def model():
    model = Custom()
    model(X)
    model.compile("adam", "mse")
    model.fit(X, X[:, :1], verbose=0)
    return model


def test_the_private_names_exist():
    assert "__reduce__" in vars(KerasSaveable)
    assert {"track", "add_to_store"} <= set(vars(Tracker))
    assert {"_inbound_nodes", "_losses"} <= set(vars(keras.layers.Dense(1)))


def test_a_copy_predicts_the_same_and_shares_nothing(model):
    made = copied_model(model)
    assert np.array_equal(np.asarray(made(X)), np.asarray(model(X)))
    assert not {id(one) for one in made.variables} & {id(one) for one in model.variables}
    before = model.get_weights()
    made.compile("sgd", "mse")
    made.fit(X, X[:, :1], verbose=0, epochs=3)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not np.array_equal(made.get_weights()[0], before[0])


def test_the_original_still_trains_after_it_was_copied(model):
    copied_model(model)
    assert np.isfinite(model.fit(X, X[:, :1], verbose=0).history["loss"][0])
    assert "__reduce__" in vars(KerasSaveable)


def test_a_sequence_of_built_layers_that_no_graph_was_made_of_is_copied(model):
    model.tail._functional, model.tail._layers = None, model.tail.layers  # as of one first called in a train step
    test_a_copy_predicts_the_same_and_shares_nothing(model)


def test_a_layer_that_added_a_symbolic_loss_is_copied():
    class Costly(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.within = keras.layers.Dense(4)

        def call(self, x):
            self.add_loss(keras.ops.sum(x))
            return self.within(x)

    layer = Costly()
    tf.function(layer)(tf.constant(X))
    assert np.array_equal(np.asarray(copied_model(layer)(X)), np.asarray(layer(X)))


def test_a_model_that_holds_an_optimizer_is_copied():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(2, use_bias=False)
            self.other_optimizer = keras.optimizers.Adam(0.01)

    model = Two()
    model.layer.build((None, 3))
    model.other_optimizer.build([model.layer.kernel])
    made = copied_model(model)
    assert made.other_optimizer is not model.other_optimizer
    assert float(made.other_optimizer.learning_rate) == pytest.approx(0.01)
    made.other_optimizer.apply([keras.ops.ones_like(made.layer.kernel)], [made.layer.kernel])
    assert float(keras.ops.max(keras.ops.abs(made.layer.kernel - model.layer.kernel))) == pytest.approx(0.01, rel=1e-3)


def test_compile_arguments_are_the_users_own_objects():
    model, optimizer = keras.Sequential([keras.layers.Dense(1)]), keras.optimizers.SGD(0.1)
    assert compile_arguments(model) is None
    model.compile(optimizer, "mse", loss_weights=[2.0])
    assert compile_arguments(model)["optimizer"] is optimizer
    assert compile_arguments(model)["loss_weights"] == [2.0]


def test_the_global_seed_of_tensorflow_is_put_back():
    tf.random.set_seed(1)
    expected = float(tf.random.uniform(()))
    tf.random.set_seed(1)
    with global_tensorflow_seed_kept():
        tf.random.set_seed(9)
    tf.random.set_seed(1)
    assert float(tf.random.uniform(())) == expected
