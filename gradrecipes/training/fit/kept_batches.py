"""Keep batches of a fit, and run a step on one again: are the weights bad, or is it the data?"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import loss_scale, lower_scale
from gradrecipes.compat.keras_private import optimizers_of
from gradrecipes.core.analysis.baseline import constant_baseline_loss
from gradrecipes.core.trace import APPLIED, SKIPPED_GRADIENT, SKIPPED_LOSS, SKIPPED_OVERFLOW
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.skipping import EARLY_RATIO
from gradrecipes.training.description.output_head import describe_loss
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.recovery.policy import DIVERGED, LATEST
from gradrecipes.training.step.forward_state import assigned_outside

END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)


class KeptBatches:
    """Hold the batches of a fit that its callbacks ask for, and run a step on one again, which leaves no trace.

    Args:
        model: The model.
        each: Whether every batch is kept; the steps of an execution are then run one by one.
        reference: Whether the batches of one execution are kept, to be tried again later.

    Attributes:
        batch: That of the last step, where each is kept.
        before: That of the step before.
        reference: The execution that is kept for later, or None.
    """

    def __init__(self, model: keras.Model, *, each: bool, reference: bool):
        self.batch: Any = None
        self.before: Any = None
        self.reference: ReferenceBatch | None = None
        self._model = model
        self._each = each
        self._wants_reference = reference
        self._rest: list[Any] = []  # of an execution, behind the batch that runs
        self._ahead: list[Any] = []  # taken from the iterator to look ahead
        self._iterator: Any = None  # where they came from

    @property
    def has_all(self) -> bool:
        """Whether nothing is left to be kept."""
        return not self._each and (self.reference is not None or not self._wants_reference)

    def executions(self, iterator: Any, steps: int, prepared: Any) -> Iterator[tuple[Any, int]]:
        """Yield what the train function is to take its batches from, and for how many steps; nothing at their end.

        Args:
            iterator: What Keras hands to the train function.
            steps: Steps of one execution.
            prepared: The `PreparedStep` that runs them.
        """
        if not self._each:
            yield from self._with_reference(iterator, steps, prepared)
            return
        held = self._ahead if self._iterator is iterator else []
        held += [batch for _, batch in zip(range(steps - len(held)), iterator, strict=False)]
        self._ahead, self._iterator = [], iterator
        for place, batch in enumerate(held):  # one by one, so that a check finds the weights of that moment
            self.before, self.batch, self._rest = self.batch, batch, held[place + 1 :]
            if self._wants_reference and self.reference is None:
                self.reference = ReferenceBatch([batch], None, prepared.next_step)
            yield [batch], 1

    def _with_reference(self, iterator: Any, steps: int, prepared: Any) -> Iterator[tuple[Any, int]]:
        taken = None
        if self._wants_reference and self.reference is None:
            taken = take_batches(iterator, steps, prepared.next_step)
            self._wants_reference = taken is not None
        if taken is None:
            yield iterator, steps
        elif len(taken):
            self.reference = taken
            yield taken.iterator(), steps

    def release(self) -> None:
        """Let go of what was kept of the last steps; the reference stays, for a last look at the weights."""
        self.batch = self.before = self._iterator = None
        self._rest, self._ahead = [], []

    def next_batch(self) -> Any:
        """Return the batch that comes after the last one, which then runs as usual; None where the data end."""
        if self._rest:
            return self._rest[0]
        if not self._ahead and hasattr(self._iterator, "__next__"):
            with contextlib.suppress(*END_OF_DATA):
                self._ahead = [next(self._iterator)]
        return self._ahead[0] if self._ahead else None

    def retry(self, batches: Any, prepared: Any) -> tuple[int, float, float] | None:
        """Run a step with the present weights, and put everything back.

        Args:
            batches: What the train function takes batches from, as `[kept.batch]`.
            prepared: The `PreparedStep` that runs it.

        Returns:
            Its outcome, a key of `gradrecipes.core.trace.OUTCOMES`, its loss and its gradient norm; None where its
            gradient was only accumulated.
        """
        pipeline = prepared.pipeline
        with preserve_state(self._model, also=assigned_outside(self._model)), preserve_pipeline(pipeline):
            now = int(pipeline.step.numpy())
            prepared.retry(batches)
            return None if int(pipeline.step.numpy()) == now else pipeline.recorder.result_of(now)

    def retry_reference(self, prepared: Any) -> Retrial | None:
        """Run a step on the reference batch with the present weights, and put everything back.

        Returns:
            What it gave; None where there is no such batch, or it was skipped itself when it came.
        """
        if self.reference is None:
            return None
        steps = prepared.collect().steps
        row = int(np.searchsorted(steps["step"], self.reference.step))
        if row >= len(steps["step"]) or steps["outcome"][row] != APPLIED:
            self.reference = None  # the next execution gives another
            return None
        seen = self.retry(self.reference.iterator(), prepared)
        return None if seen is None else Retrial(*seen, *(float(steps[n][row]) for n in ("loss", "gradient_norm")))

    def baseline(self) -> float:
        """Return the loss of the best constant prediction to the reference batch, NaN where it is not known."""
        return float("nan") if self.reference is None else self.reference.baseline(self._model.loss)

    def weights_at_fault(self, retrial: Retrial | None, consecutive: int, losses: np.ndarray) -> bool | None:
        """Return whether a batch that once was good is bad with the present weights; None where it is not known.

        Args:
            retrial: What `retry_reference` returned.
            consecutive: How many of the last steps were skipped in a row.
            losses: float32 `[n]`, the last losses that were seen, oldest first.
        """
        if retrial is None or (
            retrial.outcome == SKIPPED_GRADIENT and np.isfinite(retrial.loss) and self._is_rescaling()
        ):
            return None
        if retrial.outcome in (SKIPPED_LOSS, SKIPPED_GRADIENT, SKIPPED_OVERFLOW):
            return True
        outlies = consecutive > 0 and retrial.outcome != APPLIED
        if np.isnan(retrial.first_loss):  # the train step shows none
            return bool(outlies and 0 < DIVERGED * retrial.first_gradient_norm <= retrial.gradient_norm)
        first_loss = np.fmax(retrial.first_loss, self.baseline())
        limit = EARLY_RATIO * first_loss
        learned_nothing = len(losses) > 0 and float(np.median(losses[-LATEST:])) > limit
        far_above = 0 < limit < retrial.loss and (
            learned_nothing or retrial.loss > EARLY_RATIO * max(losses, default=0)
        )
        worse = 0 < DIVERGED * first_loss <= retrial.loss
        return bool(far_above or (outlies and worse))

    def _is_rescaling(self) -> bool:
        """Return whether an optimizer can still lower its loss scale, down to 1."""
        optimizers = optimizers_of(self._model)
        return any(lower_scale(one) is not None and float(loss_scale(one)) > 1 for one in optimizers)


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
