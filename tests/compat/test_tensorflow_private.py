"""Train steps with graphs of their own: taken in where that can be, refused in words where it cannot."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradrecipes as gr
from gradrecipes.compat.tensorflow_private import (
    binary_cross_entropies_reported,
    computed_once,
    dismantle,
    held,
    rare_cond,
    shared_function,
    with_arriving_gradient,
)
from tests.training.nets import assert_same_state, compiled, deterministic, digits, layers

ROOT = Path(__file__).resolve().parents[2]


def gradients_of(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
    return loss, tape.gradient(loss, model.trainable_variables)


class Decorated(keras.Model):
    @tf.function
    def train_step(self, data):
        loss, gradients = gradients_of(self, data)
        if loss < 2.2:  # a branch on a tensor, which the decorator turns into a tf.cond
            gradients = [2.0 * gradient for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"own_loss": loss}


class DecoratedOnTop(keras.Model):
    @tf.function
    def train_step(self, data):
        return super().train_step(data)


class Compiled(keras.Model):
    @tf.function(jit_compile=True)
    def train_step(self, data):
        return super().train_step(data)


class InBranch(keras.Model):
    def train_step(self, data):
        loss, gradients = gradients_of(self, data)

        def update():
            self.optimizer.apply(gradients, self.trainable_variables)
            return True

        tf.cond(loss > 0.0, update, lambda: False)
        return {"own_loss": loss}


class InFunction(InBranch):
    @tf.function
    def update(self, data):
        loss, gradients = gradients_of(self, data)
        self.optimizer.apply(gradients, self.trainable_variables)
        return loss

    def train_step(self, data):
        return {"own_loss": self.update(data)}


class GradientsInFunction(keras.Model):
    @tf.function
    def gradients(self, data):
        return gradients_of(self, data)

    def train_step(self, data):
        loss, gradients = self.gradients(data)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"own_loss": loss}


def net(kind, **how) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,))
    model = compiled(kind(inputs, layers.Dense(10)(inputs)), keras.optimizers.SGD(0.5), metrics=None, **how)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, *callbacks):
    x, y = digits(96)
    return model.fit(x, y, batch_size=32, shuffle=False, verbose=0, callbacks=list(callbacks)).history


@pytest.mark.parametrize(
    ("kind", "log"), [(Decorated, "own_loss"), (DecoratedOnTop, "loss"), (GradientsInFunction, "own_loss")]
)
def test_a_step_with_a_function_of_its_own_trains_as_alone(kind, log, caplog):
    with deterministic(rewrites=False):
        plain, watched, monitor = net(kind), net(kind), gr.GradientMonitor()
        alone = fit(plain)
        both = fit(watched, monitor, gr.GradientGuard())
    assert_same_state(plain, watched)
    assert both[log] == alone[log]
    assert "AutoGraph" not in caplog.text
    assert len(monitor.trace) == 3
    assert (monitor.trace.gradient_norm > 0).all()


@pytest.mark.parametrize(
    ("kind", "words"),
    [(InBranch, "gradient_accumulation_steps"), (InFunction, "tf.function"), (Compiled, "jit_compile")],
)
@pytest.mark.parametrize("callback", [gr.GradientMonitor, gr.GradientGuard])
def test_what_cannot_be_read_is_refused_with_the_way_out(kind, words, callback):
    with pytest.raises(ValueError, match=words):
        fit(net(kind), callback())


def test_a_loss_of_each_sample_is_read_as_its_mean_as_keras_logs_it():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    with deterministic(rewrites=False):
        plain, watched, monitor = net(keras.Model, loss=loss), net(keras.Model, loss=loss), gr.GradientMonitor()
        alone = fit(plain)
        both = fit(watched, monitor, gr.GradientGuard())
    assert_same_state(plain, watched)
    assert both["loss"] == alone["loss"]
    assert np.mean(monitor.trace.loss) == pytest.approx(alone["loss"][0], rel=1e-6)


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_it_takes_the_branch_of_the_predicate_and_no_other(how, value):
    taken = tf.Variable([0, 0])

    def step(x):
        def positive():
            taken.assign_add([1, 0])
            return x * 2.0, rare_cond(x > 5.0, lambda: tf.constant(1), lambda: tf.constant(2))

        def other():
            taken.assign_add([0, 1])
            return x * 3.0, tf.constant(3)

        return rare_cond(x > 0.0, positive, other)

    run = step if how == "eager" else tf.function(step, jit_compile=how == "xla")
    product, number = run(tf.constant(value))
    assert (float(product), int(number)) == ((2.0, 2) if value > 0 else (-3.0, 3))
    assert taken.numpy().tolist() == ([1, 0] if value > 0 else [0, 1])


def test_it_is_not_lowered_where_the_ordinary_condition_is():
    def operations(cond):
        graph = (
            tf.function(lambda x: cond(x > 0.0, lambda: x, lambda: -x)).get_concrete_function(tf.TensorSpec([])).graph
        )
        return [node for node in graph.as_graph_def().node if node.op in ("If", "StatelessIf")]

    (rare,), (ordinary,) = operations(rare_cond), operations(tf.cond)
    assert ordinary.attr["_lower_using_switch_merge"].b
    assert not rare.attr["_lower_using_switch_merge"].b


def test_within_its_branches_functions_run_as_everywhere_else():
    inner = tf.function(lambda x: x + 1.0)
    outer = tf.function(lambda x: rare_cond(x > 0.0, lambda: inner(x), lambda: x))
    graph = outer.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def()
    calls = [node for body in graph.library.function for node in body.node_def if "PartitionedCall" in node.op]
    assert calls
    assert all(not node.attr["executor_type"].s for node in calls)


def shared_square():
    traces = []

    @shared_function(tf.TensorSpec([None, None], tf.float32))
    def square(rows):
        traces.append(rows)
        return tf.reduce_sum(rows * rows, axis=1)

    return square, traces


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graphs_of_different_shapes_share_one_trace(jit_compile):
    square, traces = shared_square()
    for shape in ((1, 3), (2, 2)):
        run = tf.function(
            lambda x: rare_cond(x[0, 0] > 0.0, lambda: square(x), lambda: x[:, 0]), jit_compile=jit_compile
        )
        assert run(tf.fill(shape, 2.0)).numpy().tolist() == [4.0 * shape[1]] * shape[0]
        assert run(tf.fill(shape, -2.0)).numpy().tolist() == [-2.0] * shape[0]
    assert len(traces) == 1
    assert square(tf.fill([1, 5], 1.0)).numpy().tolist() == [5.0]


RESET = """
import tensorflow as tf
from tensorflow.python.eager import context

from gradrecipes.compat.tensorflow_private import rare_cond, shared_function


@shared_function(tf.TensorSpec([None, None], tf.float32))
def double(rows):
    return 2.0 * rows


for _ in range(2):
    run = tf.function(lambda x: rare_cond(x[0, 0] > 0.0, lambda: double(x + 1.0), lambda: x))
    print(run(tf.ones([1, 3])).numpy().tolist())
    context._reset_context()
"""


@pytest.mark.slow
def test_a_shared_function_is_traced_anew_where_the_context_was_reset_as_by_one_of_keras_own_tests():
    done = subprocess.run([sys.executable, "-c", RESET], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines() == ["[[4.0, 4.0, 4.0]]"] * 2, done.stderr[-2000:]


def test_a_shared_function_outlives_the_graphs_that_call_it_and_keeps_none():
    square, traces = shared_square()
    for _ in range(2):
        run = tf.function(square)
        assert run(tf.ones([1, 3])).numpy().tolist() == [3.0]
        graph = weakref.ref(run.get_concrete_function(tf.TensorSpec([1, 3])).graph)
        dismantle([graph])
        del run
        gc.collect()
        assert graph() is None
    assert len(traces) == 1


def test_a_shared_function_runs_in_a_replica_and_in_a_saved_model(tmp_path):
    square, traces = shared_square()
    strategy = tf.distribute.MirroredStrategy(["cpu:0"])
    in_replicas = tf.function(lambda: strategy.run(lambda: square(tf.ones([1, 3]))))
    assert in_replicas().numpy().tolist() == [3.0]
    module = tf.Module()
    module.run = tf.function(square, input_signature=[tf.TensorSpec([None, 4])])
    tf.saved_model.save(module, str(tmp_path))
    assert tf.saved_model.load(str(tmp_path)).run(tf.ones([1, 4])).numpy().tolist() == [4.0]
    assert len(traces) == 1


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


@pytest.mark.parametrize("where", ["eager", "graph", "replica"])
def test_held_tensors_are_what_they_were_in_whichever_branch_reads_them(where):
    def step(positive):
        sparse = tf.IndexedSlices(tf.fill([2, 3], 2.0), tf.constant([4, 1]), tf.constant([5, 3]))
        many = [tf.fill([2, 2], float(number)) for number in range(100)]
        kept = held([*many, sparse, tf.constant([1.0, 2.0], tf.float16)])

        def numbers(factor):
            *dense, slices, halves = kept()
            dense = tf.reduce_sum([one * place for place, one in enumerate(dense)], axis=0)
            assert dense.shape == [2, 2] and halves.dtype == tf.float16
            return [factor * dense, factor * tf.convert_to_tensor(slices), tf.cast(halves, tf.float32)]

        return rare_cond(positive, lambda: numbers(1.0), lambda: numbers(-1.0))

    if where == "replica":
        strategy = tf.distribute.MirroredStrategy(["cpu:0"])
        run = tf.function(lambda positive: strategy.run(step, (positive,)))
    else:
        run = tf.function(step) if where == "graph" else step
    for positive, factor in ((True, 1.0), (False, -1.0)):
        dense, slices, halves = run(tf.constant(positive))
        assert dense.numpy().tolist() == [[328350.0 * factor] * 2] * 2
        assert slices.numpy().tolist() == [[2.0 * factor * (row in (1, 4))] * 3 for row in range(5)]
        assert halves.numpy().tolist() == [1.0, 2.0]


def test_scalars_are_computed_once_and_tensors_as_written():
    rate, rows = tf.Variable(0.25), tf.Variable([1.0, 2.0])

    @tf.function
    def updated(once):
        def written_out():
            for _ in range(3):
                rows.assign_sub(tf.sqrt(1.0 - read**2.0) * rows)
            return rows.read_value()

        read = rate.read_value()
        if not once:
            return written_out()
        with computed_once():
            return written_out()

    def operations(once):
        return [one.type for one in updated.get_concrete_function(once).graph.get_operations()]

    assert operations(False).count("Sqrt") == 3
    assert operations(True).count("Sqrt") == operations(True).count("Pow") == 1
    assert operations(True).count("Mul") == operations(True).count("AssignSubVariableOp") == 3
    found = updated(True).numpy()
    rows.assign([1.0, 2.0])
    np.testing.assert_array_equal(found, updated(False).numpy())


ONES, ANSWERS = tf.ones((4, 1)), tf.constant([[-1.0], [0.2], [0.4], [2.0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (keras.losses.BinaryCrossentropy(), [(False, False)]),
        (keras.losses.binary_crossentropy, [(False, False)]),
        (keras.ops.binary_crossentropy, [(False, False)]),
        (keras.losses.BinaryCrossentropy(from_logits=True), [(True, False)]),
        (lambda y, p: tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=p), [(True, False)]),
        (
            lambda y, p: tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=keras.activations.sigmoid(p)),
            [(True, True)],
        ),
        (keras.losses.MeanSquaredError(), []),
    ],
)
def test_each_call_is_seen_once_and_computes_what_it_did(loss, expected):
    seen = []
    before = np.asarray(loss(ONES, ANSWERS))
    with binary_cross_entropies_reported(lambda answers, logits, noted: seen.append((logits, noted))):
        within = np.asarray(loss(ONES, ANSWERS))
    assert seen == expected
    np.testing.assert_array_equal(within, before)
    np.testing.assert_array_equal(loss(ONES, ANSWERS), before)
    assert len(seen) == len(expected)
