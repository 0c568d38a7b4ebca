"""The private names of Keras, and what the package makes of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat import random_state as keras_random
from tests.seeds import begin_anew
from tests.training.nets import compiled, two_dense


def instance(owner: type):
    model = compiled(two_dense(), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    model.optimizer.build(model.trainable_variables)
    if owner is keras.Model:
        return model
    if owner is keras.optimizers.Optimizer:
        return model.optimizer
    if issubclass(owner, keras.Loss):
        return owner()
    optimizer = owner(keras.optimizers.SGD()) if owner is keras.optimizers.LossScaleOptimizer else owner()
    optimizer.build(model.trainable_variables)
    return optimizer


@pytest.mark.parametrize("owner", keras_private.RELIED_ON, ids=lambda owner: owner.__name__)
def test_every_private_name_exists_on_this_keras(owner):
    missing = [name for name in keras_private.RELIED_ON[owner] if not hasattr(instance(owner), name)]
    assert not missing, (
        f"Keras {keras.__version__} has no {', '.join(missing)} on {owner.__name__}: "
        "gradrecipes/compat/keras_private.py must follow before this release of Keras is allowed."
    )


def test_a_shadowed_attribute_comes_back_as_it_was_even_after_an_error():
    layer = keras.layers.Dense(1)
    before = dict(layer.__dict__)
    with pytest.raises(KeyError), keras_private.replaced(layer, "call", None):
        assert layer.call is None
        raise KeyError
    assert layer.__dict__ == before
    assert layer.call.__func__ is keras.layers.Dense.call


def test_compiling_another_step_leaves_the_model_as_it_was():
    model = compiled(two_dense())
    before = dict(model.__dict__)
    keras_private.compile_train_step(model, lambda data: {})
    assert model.__dict__.keys() == before.keys()
    assert model.train_function is None


def test_a_traced_step_stays_valid_until_the_model_is_compiled_anew():
    model = compiled(two_dense())
    one = keras_private.compile_identity(model)
    assert keras_private.same_identity(one, keras_private.compile_identity(model))
    compiled(model)
    assert not keras_private.same_identity(one, keras_private.compile_identity(model))


def test_the_state_of_metrics_and_of_a_loss_is_made_by_the_spec_of_a_batch_alone():
    entered = keras.Input((3,))
    model = keras.Model(entered, [keras.layers.Dense(1)(entered), keras.layers.Dense(2)(entered)])
    model.compile("sgd", loss=["mse", "mse"], metrics=[["mae"], ["mae"]])
    spec = (tf.TensorSpec([None, 3]), (tf.TensorSpec([None, 1]), tf.TensorSpec([None, 2])))
    keras_private.build_metrics_by_spec(model, spec)
    made = [variable.path for variable in model.metrics_variables]
    model.fit(np.ones((4, 3)), (np.ones((4, 1)), np.ones((4, 2))), verbose=0)
    assert [variable.path for variable in model.metrics_variables] == made
    assert float(keras_private.loss_count(model)) == 4.0


def test_a_loss_shows_what_it_hands_to_its_function():
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.25)
    assert {"from_logits": True, "label_smoothing": 0.25}.items() <= keras_private.loss_arguments(loss).items()
    assert keras_private.loss_arguments(keras.losses.mean_squared_error) == {}


def test_a_layer_that_holds_layers_is_told_from_one_that_holds_none():
    wrapped = keras.layers.TimeDistributed(keras.layers.Dense(1))
    assert [keras_private.holds_layers(layer) for layer in (wrapped, wrapped.layer)] == [True, False]


def test_layers_at_any_depth_come_in_the_order_of_attachment_each_once():
    shared = keras.layers.Dense(1, name="shared")
    inner = keras.Sequential([keras.layers.Dense(1, name="a"), shared], name="inner")
    model = keras.Sequential([inner, keras.layers.Bidirectional(keras.layers.GRU(1, name="g"), name="both"), shared])
    names = [layer.name for layer in keras_private.sublayers(model)]
    assert names[:4] == ["inner", "a", "shared", "both"] and names.count("shared") == 1
    assert set(names) == {layer.name for layer in model._flatten_layers(include_self=False)}


def test_the_variables_of_a_layer_itself_are_those_made_to_be_trained():
    inner = keras.layers.BatchNormalization(trainable=False)
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1)])
    assert keras_private.own_variables(model) == []
    assert [one.name for one in keras_private.own_variables(inner)] == ["gamma", "beta"]
    assert keras_private.frozen_variables(inner) == keras_private.own_variables(inner)


def test_the_random_states_that_no_public_name_reaches_are_there():
    tf.random.set_seed(1)
    expected = tf.random.normal((2,)).numpy().tolist()
    tf.random.set_seed(1)
    with keras_random.eager_random_kept():
        tf.random.normal((2,))
    assert tf.random.normal((2,)).numpy().tolist() == expected
    with keras_random.global_seed_kept():
        keras.random.uniform((1,))
    begin_anew()
    _, expected = keras.random.uniform(()), float(keras.random.uniform(()))
    begin_anew()
    keras.random.uniform(())
    with keras_random.global_seed_kept():
        keras.random.uniform((3,))
    assert float(keras.random.uniform(())) == expected
