"""Graphs, variables, conditions, tapes and cross-entropies, by private names or past the public ones."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import nn as backend_nn
from tensorflow.python.eager import context, record
from tensorflow.python.framework import func_graph
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable, ResourceVariable

from gradrecipes.compat.keras_private import replaced


def inlined(train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a train step that a `tf.function` decorates without its decorator, others as they are.

    Raises:
        ValueError: The decorator compiles the step by XLA, which would be lost.
    """
    python_function = getattr(train_step, "python_function", None)
    if python_function is None:
        return train_step
    if getattr(train_step, "_jit_compile", None):
        raise ValueError(
            "A train_step is monitored and guarded within the graph that Keras makes of the step. Received: a "
            "train_step decorated with @tf.function(jit_compile=True), which is a graph of its own. Take the decorator "
            "away and compile the model with jit_compile=True instead."
        )
    if getattr(train_step, "_autograph", True):
        try:
            return tf.autograph.to_graph(python_function)
        except Exception:  # no source to convert, as in an interactive session; most steps need no conversion
            return python_function
    return python_function


def dismantle(graphs: Iterable[Callable[[], Any]]) -> None:
    """Free graphs of functions that are no longer called; the garbage collector does not free those of a train step.

    Args:
        graphs: Weak references to them.
    """
    for reference in graphs:
        if (graph := reference()) is not None:
            func_graph.dismantle_func_graph(graph)


def current_graph() -> Any:
    """Return the graph that is being built, or "eager" where none is."""
    return "eager" if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def require_same_graph(graph: Any, optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse an update that stands in a branch, a loop or a function of its own.

    Args:
        graph: What `current_graph` returned at the beginning of the step.
        optimizer: What is about to apply gradients.

    Raises:
        ValueError: With the ways out.
    """
    if current_graph() is graph:
        return
    raise ValueError(
        "Gradients must be applied in the train_step itself, once or several times in each step, to be monitored and "
        f"guarded. Received: {type(optimizer).__name__}.apply within a tf.cond, a tf.while_loop or a tf.function that "
        "the train_step calls, whose results cannot be read outside of it. To accumulate gradients, give the optimizer "
        "gradient_accumulation_steps=... and apply in every step; take a @tf.function off what the train_step calls; "
        "or use gr.GradientPipeline(optimizer).apply(gradients, variables, loss=loss) in a loop of your own."
    )


def updates_without_merging() -> bool:
    """Return whether an optimizer may update inside a condition: replicas of one process have to meet there else."""
    return tf.__internal__.distribute.strategy_supports_no_merge_call()


def plain_variable(initial_value: Any, *, dtype: tf.DType | None = None, name: str | None = None) -> tf.Variable:
    """Return one variable on one device, even while a function is traced inside a strategy's scope.

    `tf.Variable` asks the strategy in scope, which would make a copy for each replica. The pipeline decides once
    for all replicas, so that its state must exist once. Making the class itself is the only way past the
    strategy; TensorFlow has no public name for it.

    Args:
        initial_value: What `tf.convert_to_tensor` takes; kept as the attribute `beginning`.
        dtype: The dtype, or None for that of the value.
        name: A name for error messages.
    """
    with tf.init_scope():
        variable = ResourceVariable(initial_value, trainable=False, dtype=dtype, name=name)
    variable.beginning = initial_value
    return variable


def host_value(variable: tf.Variable) -> np.ndarray:
    """Return what `variable.numpy()` does, in a third of the time: 9 microseconds where that takes 26."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype).numpy()


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
    if not stays_one_operation():
        return tf.cond(predicate, true_fn, false_fn)
    with tf.experimental.function_executor_type(_NOT_LOWERED):
        return tf.cond(predicate, _with_usual_executor(true_fn), _with_usual_executor(false_fn))


def variable_of(variable: Any) -> Any:
    """Return the variable of TensorFlow that a variable of Keras' holds; any other as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


# TensorFlow's optimizer describes every tensor of an optional by the types of all: its work goes with the cube of their
# number. For 400 together that took a minute, for 32 at a time none; a step does not feel the few more arguments.
_HELD_TOGETHER = 32


def held(tensors: Sequence[Any]) -> Callable[[], list[Any]]:
    """Return what gives tensors or slices to a branch of `rare_cond`, as few arguments of it; not for XLA."""
    if not stays_one_operation():
        return lambda: list(tensors)
    parts = (tuple(tensors[start : start + _HELD_TOGETHER]) for start in range(0, len(tensors), _HELD_TOGETHER))
    kept = [tf.experimental.Optional.from_value(part) for part in parts]
    return lambda: [tensor for part in kept for tensor in part.get_value()]


def optimized(branch: Callable[[], Any]) -> Callable[[], Any]:
    """Return a branch whose arithmetic TensorFlow's graph optimizer rewrites as it does outside of a condition.

    It leaves the body of an operation that is not lowered alone, so that x / sqrt(y), which it else turns into
    x * rsqrt(y), would differ in the last bit. A function that the branch calls is optimized like any other; the
    call itself takes 5% of a step where it has the 170 arguments of an update of 20 Dense layers by Adam.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy() or not _runs_on_the_cpu():
        return branch
    return tf.function(branch, autograph=False)


_SCALAR_ARITHMETIC = frozenset({
    "AddV2", "Cast", "Const", "DivNoNan", "Identity", "Maximum", "Minimum", "Mul", "Neg", "Pow", "RealDiv", "Rsqrt",
    "Sqrt", "Square", "Sub",
})  # fmt: skip
_SCALAR_CONSTANT = 64  # bytes that hold one, as a message


@contextlib.contextmanager
def computed_once() -> Iterator[None]:
    """Let the graph that is being traced compute each scalar once, however often it is written out.

    Keras' optimizers write out the same powers and rates for each variable, 14 operations of the 34 that Adam takes.
    TensorFlow's graph optimizer merges them, but for the body of an operation that is not lowered.
    """
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly():
        yield
        return
    create, known = graph._create_op_internal, {}

    def create_once(op_type: str, inputs: Any, *arguments: Any, attrs: Any = None, **options: Any) -> Any:
        inputs = list(inputs)
        is_scalar = op_type in _SCALAR_ARITHMETIC and all(tensor.shape.rank == 0 for tensor in inputs)
        texts = {name: value.SerializeToString() for name, value in (attrs or {}).items()} if is_scalar else {}
        if not is_scalar or sum(map(len, texts.values())) > _SCALAR_CONSTANT:
            return create(op_type, inputs, *arguments, attrs=attrs, **options)
        key = op_type, tuple(map(id, inputs)), tuple(sorted(texts.items()))
        if key not in known:  # with the inputs, so that their identity stays theirs
            known[key] = create(op_type, inputs, *arguments, attrs=attrs, **options), inputs
        return known[key][0]

    graph._create_op_internal = create_once
    try:
        yield
    finally:
        del graph._create_op_internal


def shared_function(*signature: tf.TensorSpec) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Trace a function of tensors once in a context of TensorFlow's; a graph calls it as one operation.

    A graph is traced whole, what its steps rarely need as well: written out anew for each tensor of each fit, that took
    longer than the train step itself. XLA inlines the call, so that a size that is None here is known to it. A process
    has one context unless it is reset, which leaves what was traced before unusable.

    Args:
        signature: The specs of the arguments, all of them tensors. The function must not use variables.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.lru_cache(maxsize=1)
        def traced(_: Any) -> Callable[..., Any]:
            with tf.init_scope():
                return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()

        @functools.wraps(function)
        def call(*tensors: tf.Tensor) -> Any:
            return function(*tensors) if tf.executing_eagerly() else traced(context.context())(*tensors)

        return call

    return decorate


def _with_usual_executor(branch: Callable[[], Any]) -> Callable[[], Any]:
    def traced() -> Any:
        with tf.experimental.function_executor_type(None):
            return branch()

    return traced


def stays_one_operation() -> bool:
    """Return whether a condition of `rare_cond` is one operation here: on a single processor, without a strategy."""
    return not tf.distribute.has_strategy() and _runs_on_the_cpu()


@functools.cache
def _runs_on_the_cpu() -> bool:
    return {device.device_type for device in tf.config.list_logical_devices()} == {"CPU"}


_LOCK = threading.Lock()
_REPORTS: dict[int, Callable[[Any], None]] = {}
_ORIGINALS = [  # every assignment to a Keras variable ends in one of them
    (kind, name, vars(kind)[name])
    for kind in (BaseResourceVariable, ResourceVariable)
    for name in ("assign", "assign_add", "assign_sub")
    if name in vars(kind)
]


@contextlib.contextmanager
def assignments_reported(report: Callable[[tf.Variable], None]) -> Iterator[None]:
    """Report each variable that this thread is about to assign within the `with` block.

    TensorFlow has no public way to learn of it while a function is traced, so its methods are shadowed meanwhile.
    """
    thread = threading.get_ident()
    with _LOCK:
        before = _REPORTS.get(thread)
        _REPORTS[thread] = report
        for kind, name, original in _ORIGINALS:
            setattr(kind, name, _reporting(original))
    try:
        yield
    finally:
        with _LOCK:
            if before is None:
                del _REPORTS[thread]
            else:
                _REPORTS[thread] = before
            if not _REPORTS:
                for kind, name, original in _ORIGINALS:
                    setattr(kind, name, original)


@functools.cache
def _reporting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def assign(variable, *args, **kwargs):
        report = _REPORTS.get(threading.get_ident())
        if report is not None:
            report(variable)
        return original(variable, *args, **kwargs)

    return assign


def reading_before(graph: Any) -> contextlib.AbstractContextManager[Any] | None:
    """Return where to read what a step is about to assign; None if that happens in another graph than the step's.

    Within a condition or a loop of the step that is the step's own graph, in which the read comes first.

    Args:
        graph: What `current_graph` returned at the beginning of the step.
    """
    if graph == "eager":
        return tf.init_scope()  # a step that runs eagerly, perhaps with a function in it
    inner = current_graph()
    while inner is not None and inner is not graph:
        inner = getattr(inner, "outer_graph", None)
    return None if inner is None else graph.as_default()  # None where a layer is built, say


def with_arriving_gradient(tensor: tf.Tensor, receive: Callable[[Any], None]) -> tf.Tensor:
    """Return the tensor, and call `receive` with each gradient that a `tf.GradientTape` brings back to it.

    `tf.custom_gradient` would do the same in public; in a graph it registers its function in a table of the process,
    with all that the function refers to, and nothing takes it out again.
    """
    with record.stop_recording():
        passed = tf.identity(tensor)

    def backward(gradient: Any) -> list[Any]:
        receive(gradient)
        return [gradient]

    record.record_operation("Identity", [passed], [tensor], backward)
    for name, value in vars(tensor).items():
        if name.startswith("_keras"):  # masks, and the logits behind a softmax: Keras' losses look for them
            setattr(passed, name, value)
    return passed


Gradient = Callable[..., Any]


@contextlib.contextmanager
def _differentiated_by(wrap: Callable[[Gradient], Gradient]) -> Iterator[None]:
    """Let each `tf.GradientTape` differentiate by what `wrap` makes of its own method, within the `with` block."""
    original = tf.GradientTape.gradient
    tf.GradientTape.gradient = functools.wraps(original)(wrap(original))
    try:
        yield
    finally:
        tf.GradientTape.gradient = original


def targets_reported(report: Callable[[Any, Any], None]) -> contextlib.AbstractContextManager[None]:
    """Call `report(target, sources)` for whatever a `tf.GradientTape` differentiates within the `with` block."""

    def wrap(original: Gradient) -> Gradient:
        def gradient(tape: tf.GradientTape, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            report(target, sources)
            return original(tape, target, sources, *args, **kwargs)

        return gradient

    return _differentiated_by(wrap)


def without_parts(parts_of: Callable[[Any], Sequence[tuple[Any, Any]]]) -> contextlib.AbstractContextManager[None]:
    """Let each `tf.GradientTape` differentiate what remains of a scalar without some of its parts, within the block.

    Args:
        parts_of: Called with what is differentiated; returns the parts, each with the weights of its entries in it.
    """

    def wrap(original: Gradient) -> Gradient:
        def gradient(tape: tf.GradientTape, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            parts = parts_of(target) if not args and kwargs.get("output_gradients") is None else ()
            if not parts:
                return original(tape, target, sources, *args, **kwargs)
            weights = [-tf.cast(weight, part.dtype) for part, weight in parts]
            kwargs["output_gradients"] = [tf.ones_like(target), *weights]
            return original(tape, [target, *(part for part, _ in parts)], sources, **kwargs)

        return gradient

    return _differentiated_by(wrap)


@contextlib.contextmanager
def binary_cross_entropies_reported(report: Callable[[Any, bool, bool], None]) -> Iterator[None]:
    """Call `report(answers, from_logits, are_probabilities)` for each binary cross-entropy within the block.

    The last says whether what is taken for logits comes from a sigmoid: Keras' own loss goes back to before it then.
    """
    of_keras, of_tensorflow = backend_nn.binary_crossentropy, tf.nn.sigmoid_cross_entropy_with_logits

    @functools.wraps(of_keras)
    def entropy(target: Any, output: Any, from_logits: bool = False) -> Any:
        if not from_logits:
            report(output, False, False)
        return of_keras(target, output, from_logits)

    @functools.wraps(of_tensorflow)
    def entropy_of_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Any:
        report(logits, True, hasattr(logits, "_keras_logits"))
        return of_tensorflow(labels, logits, name)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(backend_nn, "binary_crossentropy", entropy))
        stack.enter_context(replaced(tf.nn, "sigmoid_cross_entropy_with_logits", entropy_of_logits))
        yield
