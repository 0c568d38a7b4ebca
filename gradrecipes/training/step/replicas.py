"""Where a strategy has several replicas: gradients are summed once, and what follows is decided once for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat.keras_private import DIVIDES_LOSS_AMONG_REPLICAS
from gradrecipes.compat.tensorflow_private import updates_without_merging

Apply = Callable[[Sequence[Any]], None]


def require_supported(strategy: tf.distribute.Strategy, caller: str) -> None:
    """Refuse the strategies whose replicas the pipeline cannot follow, and those that Keras itself does not.

    Raises:
        ValueError: With the strategy's name and what is supported.
    """
    parameter_server = isinstance(strategy, tf.distribute.experimental.ParameterServerStrategy)
    local = strategy.num_replicas_in_sync // max(workers(strategy), 1)
    several_of_many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and local > 1
    if parameter_server or several_of_many:
        raise ValueError(
            f"{caller} works on one device, under tf.distribute.MirroredStrategy, and under "
            "MultiWorkerMirroredStrategy with one replica on each worker. "
            f"Received: a {type(strategy).__name__} with {strategy.num_replicas_in_sync} replicas on "
            f"{workers(strategy)} workers. Start one worker for each device instead."
        )
    if strategy.num_replicas_in_sync > 1 and not DIVIDES_LOSS_AMONG_REPLICAS:
        raise ValueError(
            f"{caller} needs Keras 3.8 or later on several replicas: Keras 3.7 does not divide the loss among them, so "
            "that updates grow with the number of replicas, and cannot make a Dropout layer there at all. "
            f"Received: Keras {keras.version()} and a {type(strategy).__name__} with "
            f"{strategy.num_replicas_in_sync} replicas. Upgrade Keras, or use one device."
        )


def require_no_condition(optimizers: Iterable[Any]) -> None:
    """Refuse optimizers of which Keras puts an update into a condition where replicas would have to meet in it.

    Raises:
        ValueError: With the argument that asks for it and the ways out.
    """
    if updates_without_merging():
        return
    strategy = tf.distribute.get_strategy()
    for optimizer in optimizers:
        for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
            if value := getattr(optimizer, name, None):
                raise ValueError(
                    f"Keras itself cannot train with `{name}` on several replicas of one process: its update then "
                    f"stands in a condition, where replicas cannot meet. Received: {name}={value} under a "
                    f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} replicas. Leave it out, or use "
                    "one device."
                )


def workers(strategy: tf.distribute.Strategy) -> int:
    """Return how many processes train together."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return 1
    return sum(resolver.cluster_spec().num_tasks(job) for job in resolver.cluster_spec().jobs if job != "ps")


def is_multi_worker(model: keras.Model) -> bool:
    """Return whether a model was made under a strategy of several workers."""
    strategy = model.distribute_strategy
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and workers(strategy) > 1


def as_logs(logs: Any, model: keras.Model) -> Any:
    """Return the logs of a step as Keras can average them over workers: over an axis that scalars lack."""
    if not is_multi_worker(model):
        return logs
    return {name: tf.reshape(tf.convert_to_tensor(value), [1]) for name, value in logs.items()}


def spread() -> bool:
    """Return whether the code runs as a replica, perhaps the only one, of a strategy whose replicas meet to update."""
    return (
        tf.distribute.in_cross_replica_context() is False
        and tf.distribute.has_strategy()
        and not updates_without_merging()
    )


def once(function: Callable[..., None], *values: Any) -> None:
    """Call a function once for all replicas.

    Args:
        function: Takes, for each value, the tuple of what it is on each replica of this worker.
        values: Tensors, or lists and tuples of tensors and None; what `function` gets is lists.
    """
    if not spread():
        function(*[_map(lambda value: (value,), value) for value in values])
        return

    def merged(strategy: tf.distribute.Strategy, *values: Any) -> None:
        function(*[_map(strategy.experimental_local_results, value) for value in values])

    tf.distribute.get_replica_context().merge_call(merged, args=values)


def sum_once(
    run: Callable[[Sequence[Any], Any, Apply], None],
    gradients: Sequence[Any],
    variables: Sequence[Any],
    loss: Any,
    apply_gradients: Apply,
) -> None:
    """Sum gradients and loss over the replicas, with one all-reduce, and let `run` act on the sums once for all.

    Keras clips each replica's share before the sum, so that the bound holds for none of them; and it sums within
    the update, where a condition around it cannot stand, as replicas meet there. Here the sum comes first.

    Args:
        run: Takes the summed gradients, the summed loss, and a function that applies gradients on every replica.
        gradients: This replica's gradients.
        variables: The variables that they belong to.
        loss: This replica's share of the loss, or None.
        apply_gradients: Applies gradients on this replica, without a sum of its own.
    """
    if not tf.distribute.has_strategy():
        run(gradients, loss, apply_gradients)
        return
    if not spread():
        context = tf.distribute.get_replica_context()
        total = None if loss is None else context.all_reduce(tf.distribute.ReduceOp.SUM, loss)
        run(context.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients)), total, apply_gradients)
        return

    def merged(strategy: tf.distribute.Strategy, gradients: list[Any], loss: Any) -> None:
        destinations = [getattr(variable, "value", variable) for variable in variables]
        pairs = list(zip(gradients, destinations, strict=True))
        summed = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        first = [strategy.experimental_local_results(gradient)[0] for gradient in summed]
        total = None if loss is None else strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)

        def apply_everywhere(transformed: Sequence[Any]) -> None:
            strategy.extended.call_for_each_replica(apply_gradients, args=(list(transformed),))

        run(first, total, apply_everywhere)

    tf.distribute.get_replica_context().merge_call(merged, args=(list(gradients), loss))


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_map(function, item) for item in value]
    return (None,) if value is None else tuple(function(value))


WORKER_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)


@contextlib.contextmanager
def naming_lost_workers(model: keras.Model) -> Iterator[None]:
    """Say in plain words that another worker was lost, where TensorFlow speaks of a collective operation.

    Raises:
        RuntimeError: Another worker of a model's strategy is gone; with how to go on.
    """
    try:
        yield
    except WORKER_LOST as error:
        if not is_multi_worker(model):
            raise
        raise RuntimeError(
            "Another worker of this training was lost: it has crashed, was ended, or cannot be reached any more, so "
            "that no step can be taken together. The weights on this one are those of the last whole step. Start all "
            "workers again; with keras.callbacks.BackupAndRestore(directory), a directory for each worker, they go on "
            f"from their last backup. Received from TensorFlow: {type(error).__name__}: {str(error)[-600:]}"
        ) from error


def first_local_batch(strategy: tf.distribute.Strategy, iterator: Any) -> Any:
    """Return the part of the first batch that a replica of this worker gets, to build a model by its shapes."""
    for _, _, batches in iterator:
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], next(batches))
    return None
