"""A condition for rare cases gives what `tf.cond` gives; graphs share a function without sharing their fate."""

from __future__ import annotations

import gc
import weakref

import pytest
import tensorflow as tf

from gradrecipes.compat.control_flow import rare_cond, shared_function
from gradrecipes.compat.graphs import dismantle


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
