"""Keep a batch of a fit, to run a step on it again later: are the weights bad, or is it the data?"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gradrecipes.core.analysis.baseline import constant_baseline_loss
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.training.description.output_head import describe_loss


class Retrial(NamedTuple):
    """What a step on the reference batch gave.

    Attributes:
        outcome: A key of `gradrecipes.core.trace.OUTCOMES`; of the step with the present weights.
        loss: Its loss; NaN where it is not seen.
        gradient_norm: Its global gradient norm.
        first_loss: The loss of the batch when it came.
        first_gradient_norm: Its norm when it came.
    """

    outcome: int
    loss: float
    gradient_norm: float
    first_loss: float
    first_gradient_norm: float


class ReferenceBatch:
    """Hold the batches of one execution of a train function.

    Args:
        batches: The batches, in order.
        spec: The `element_spec` of the iterator they came from, so that no function is traced anew for them; None for
            batches that the function takes as a list.
        step: The step at which the first of them was run.
    """

    def __init__(self, batches: list[Any], spec: Any, step: int):
        self._batches = batches
        self._spec = spec
        self.step = step

    def __len__(self) -> int:
        return len(self._batches)

    def baseline(self, loss: Any) -> float:
        """Return the loss of the best constant prediction to the first batch, NaN where it is not known.

        Args:
            loss: What the model was compiled with.
        """
        targets = keras.utils.unpack_x_y_sample_weight(self._batches[0])[1]
        if targets is None or keras.tree.is_nested(targets) or isinstance(loss, dict | list | tuple):
            return float("nan")
        about = describe_loss(loss)
        found = None if about["custom"] else constant_baseline_loss(about["loss"], targets)
        return float("nan") if found is None else found

    def iterator(self) -> Iterator[Any] | list[Any]:
        """Return what the train function takes its batches from."""
        if self._spec is None:
            return list(self._batches)
        # A dataset that also holds an empty batch has the unknown dimensions of the iterator.
        dataset = tf.data.Dataset.from_tensors(tf.nest.map_structure(_nothing_of, self._spec))
        for batch in reversed(self._batches):
            dataset = tf.data.Dataset.from_tensors(batch).concatenate(dataset)
        return iter(dataset.take(len(self._batches)))


def take_batches(iterator: Any, steps: int, step: int) -> ReferenceBatch | None:
    """Take the batches of one execution from an iterator, or None, and nothing taken, where they are no plain tensors.

    Args:
        iterator: What Keras hands to a train function.
        steps: Steps of one execution.
        step: Steps that have run.
    """
    if inspect.isgenerator(iterator):  # that of `train_on_batch`
        return ReferenceBatch(list(iterator), None, step)
    spec = getattr(iterator, "element_spec", None)
    if not isinstance(iterator, tf.data.Iterator) or spec is None:
        return None
    parts = tf.nest.flatten(spec)
    if not all(isinstance(part, tf.TensorSpec) and part.shape.rank is not None for part in parts):
        return None
    return ReferenceBatch([batch for _, batch in zip(range(steps), iterator, strict=False)], spec, step)


@contextlib.contextmanager
def preserve_pipeline(pipeline: Pipeline) -> Iterator[None]:
    """Put back all state of a pipeline after the `with` block: a step within it leaves no trace."""
    counts = [pipeline.step, pipeline.consecutive_skips]
    recorder = [] if pipeline.recorder is None else pipeline.recorder.counts
    before = [(variable, variable.numpy()) for variable in [*counts, *recorder, *pipeline.variables.values()]]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _nothing_of(spec: tf.TensorSpec) -> tf.Tensor:
    shape = [size or 0 for size in spec.shape]
    return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)
