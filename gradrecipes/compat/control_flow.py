"""Conditions that do not slow down the rest of their graph, and functions that several graphs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_NOT_LOWERED = "SINGLE_THREADED_EXECUTOR"  # under this executor `tf.cond` stays a single operation; none is run by it


def rare_cond(predicate: tf.Tensor, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
    """Return what `tf.cond` returns, as one operation whose branches are functions.

    TensorFlow lowers a condition into switches and merges, and a graph that holds one of those is run by a slower
    executor, all of it: 10% of a step of 20 Dense layers on one core. An operation that is not lowered costs some
    10 microseconds and leaves the rest of the graph alone. Its branches run on a single device, so the ordinary
    condition is used where there are several, on accelerators, and where XLA compiles the graph.

    Args:
        predicate: bool scalar.
        true_fn: Makes the tensors of one branch.
        false_fn: Makes those of the other, in the same structure and of the same dtypes.
    """
    if tf.distribute.has_strategy() or not _runs_on_the_cpu():
        return tf.cond(predicate, true_fn, false_fn)
    with tf.experimental.function_executor_type(_NOT_LOWERED):
        return tf.cond(predicate, _with_usual_executor(true_fn), _with_usual_executor(false_fn))


def optimized(branch: Callable[[], Any]) -> Callable[[], Any]:
    """Return a branch whose arithmetic TensorFlow's graph optimizer rewrites as it does outside of a condition.

    It leaves the body of an operation that is not lowered alone, so that x / sqrt(y), which it else turns into
    x * rsqrt(y), would differ in the last bit. A function that the branch calls is optimized like any other; the
    call itself takes 5% of a step where it has the 170 arguments of an update of 20 Dense layers by Adam.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy() or not _runs_on_the_cpu():
        return branch
    return tf.function(branch, autograph=False)


def shared_function(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Trace a function of tensors once in a process; a graph calls it as one operation.

    A graph is traced whole, what its steps rarely need as well: written out anew for each tensor of each fit, that took
    longer than the train step itself. XLA inlines the call, so that a size that is None here is known to it.

    Args:
        signature: The specs of the arguments, all of them tensors. The function must not use variables.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def traced() -> Callable[..., Any]:
            with tf.init_scope():
                return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()

        @functools.wraps(function)
        def call(*tensors: tf.Tensor) -> Any:
            return function(*tensors) if tf.executing_eagerly() else traced()(*tensors)

        return call

    return decorate


def _with_usual_executor(branch: Callable[[], Any]) -> Callable[[], Any]:
    def traced() -> Any:
        with tf.experimental.function_executor_type(None):
            return branch()

    return traced


@functools.cache
def _runs_on_the_cpu() -> bool:
    return {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}
