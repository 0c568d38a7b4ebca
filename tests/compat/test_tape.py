"""Gradients that arrive at a tensor are seen, and nothing of the process remembers it."""

from __future__ import annotations

import gc
import weakref

import pytest
import tensorflow as tf

from gradrecipes.compat.tape import with_arriving_gradient


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_the_gradient_that_arrives_is_received_and_passed_on(how):
    received = []

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            passed = with_arriving_gradient(2.0 * x, received.append)
            loss = tf.reduce_sum(passed * passed)
        return passed, tape.gradient(loss, x), received[-1]

    run = step if how == "eager" else tf.function(step, jit_compile=how == "xla")
    passed, gradient, arrived = run(tf.constant([1.0, -3.0]))
    assert passed.numpy().tolist() == [2.0, -6.0]
    assert arrived.numpy().tolist() == [4.0, -12.0]
    assert gradient.numpy().tolist() == [8.0, -24.0]


def test_a_second_derivative_goes_through():
    x = tf.constant(3.0)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = with_arriving_gradient(x, lambda gradient: None) ** 3
        first = inner.gradient(y, x)
    assert float(first) == 27.0
    assert float(outer.gradient(first, x)) == 18.0


def test_what_keras_notes_on_a_tensor_goes_with_it():
    tensor = tf.constant([1.0])
    tensor._keras_mask = "the mask"
    assert with_arriving_gradient(tensor, lambda gradient: None)._keras_mask == "the mask"


def test_a_graph_is_freed_with_its_function():
    """`tf.custom_gradient` would keep it in a table of the process."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(with_arriving_gradient(x, lambda gradient: None))
        return tape.gradient(loss, x)

    function = tf.function(step)
    graph = weakref.ref(function.get_concrete_function(tf.TensorSpec([2])).graph)
    del function, step
    gc.collect()
    assert graph() is None
