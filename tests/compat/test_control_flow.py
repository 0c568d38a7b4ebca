"""A condition for rare cases gives what `tf.cond` gives, and leaves the graph around it alone."""

from __future__ import annotations

import pytest
import tensorflow as tf

from gradrecipes.compat.control_flow import rare_cond


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
