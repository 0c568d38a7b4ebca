"""Train the same net once more with standard settings, to see whether the program's own ones hold it back.

The twin has the program's architecture and rows, and takes as many steps. Its settings are those that train most nets:
Adam at 0.001, a linear last layer under the loss that fits the targets, inputs and targets of unit size, initial
weights of usual size, no regularization, the whole model called in a plain step. Where it learns far more of rows that
neither was trained on, each setting in which the two differ is taken back, one at a time: without the one that is at
fault, the twin falls behind as well.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import rate_multiplied
from gradrecipes.compat.keras_private import leaves, optimizers_of, replaced
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import TWIN, LinearReading, Setting
from gradrecipes.core.trace.probes import OutputReading
from gradrecipes.core.trace.trial_reading import TrialReading
from gradrecipes.diagnosis.facts.divergences import SHARE_BEHIND, end_over_baseline, rests, saw_all
from gradrecipes.diagnosis.facts.mismatch import class_of
from gradrecipes.diagnosis.outcome import HALVED_END, verdict
from gradrecipes.probes.held_back import MIN_JUDGED, answers_to, standard_error
from gradrecipes.probes.loss import as_loss
from gradrecipes.probes.varied.tasks import CLASSES, FITTING, LEAST, NUMBERS, YES_OR_NO, Task, fits, tasks_of
from gradrecipes.probes.varied.variations import Context, fitting_weights, scaled_inputs, unregularized
from gradrecipes.training.description.model_graph import model_graph
from gradrecipes.training.description.output_head import losses_of
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)

STANDARD_RATE, NEAR_STANDARD = 1e-3, 3.0  # of Adam, Keras' default; by what factor another is no other setting
RATES = (10.0, 100.0, 1e3, 0.1, 0.01)  # tried where the optimizer is at fault


def standard_twin(
    trial: Trial, trace: Trace, batches: Sequence[Any], held: Sequence[Sequence[Any]]
) -> LinearReading | None:
    """Return what the standard twin learns of rows held back, beside the program, and which settings are at fault.

    It is asked where an output ends above its constant prediction, or the loss above half of that or where it is not
    known, after all of the planned training, or where it falls no more.

    Args:
        trial: Its model is at the end of all steps that the trace tells of.
        trace: With their reading.
        batches: That it was trained on.
        held: Batches that it was not trained on, of one source after the other. Where none has enough rows, the twin is
            trained on every other batch of the trial, and judged on the rest.

    Returns:
        None where no twin can be had: of a step of several optimizers, targets that are no answers of the net, a loss
        that does not compare these, too few rows. Settings are named where the program gains less than half as much.
    """
    reading, seen, batches = trace.probes.trial or TrialReading(), verdict(trace), list(batches)
    learned = all(one.learned for one in reading.further or reading.outputs) and end_over_baseline(trace) <= HALVED_END
    if seen.unhealthy or learned or not (saw_all(trace) or rests(reading, seen)):
        return None
    ended, steps = trial.save(), reading.steps + reading.further_steps
    enough = [list(one) for one in held if sum(_shapes(batch)[0][0] for batch in one) >= MIN_JUDGED]
    judged, trained = (enough[0], batches) if enough else (batches[1::2], batches[::2])
    context = Context(trial, trace.description, trace.probes, seen, trained)
    try:
        twin = _Twin(context, judged, steps)
        if not twin.tasks or twin.rows < MIN_JUDGED:
            return None
        found = twin.compared(twin.own(ended), next(twin.trained()))
        return found if _share(found) >= SHARE_BEHIND else twin.with_faults(found)
    except Exception:  # a model that is not called as a whole, batches of several shapes
        logger.debug("No standard twin of %r could be trained.", trial.model, exc_info=True)
        return None
    finally:
        trial.load(ended)


class _Twin:
    """Train the model of a trial with standard settings, but for some that are kept."""

    def __init__(self, context: Context, judged: Sequence[Any], steps: int):
        self._context, self._trial, self._model = context, context.trial, context.trial.model
        self._steps, self._given = steps, list(judged)
        self._batches = [one for one in context.batches if _shapes(one) == _shapes(context.batches[0])]
        self.tasks = tasks_of(context, [*self._batches, *self._given])
        targets = [keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(batch)[1]) for batch in self._given]
        self._targets = [np.concatenate(rows) for rows in zip(*targets, strict=True)]
        self.rows = len(self._targets[0])
        graph = model_graph(self._model)
        self._heads = [] if graph is None else [graph.nodes[place].operation for place in graph.outputs]
        scaled = scaled_inputs(replace(context, batches=[*self._batches, *self._given]))
        self._scaled = None if scaled is None or "Embedding" in context.description.kinds else scaled["batches"]
        self._weights = fitting_weights(self._model, context.probes.signal.weights)

    @property
    def differing(self) -> list[str]:
        """The settings of the program that are not the standard ones."""
        description = self._context.description
        optimizer = description.optimizer
        ratio = (optimizer.learning_rate or 0.0) / STANDARD_RATE if optimizer.schedule is None else 0.0
        near = 1.0 / NEAR_STANDARD <= ratio <= NEAR_STANDARD and "Adam" in optimizer.name
        found = [] if near and not optimizer.unusual else [Setting.OPTIMIZER]
        found += [Setting.INPUTS] if self._scaled is not None else []
        found += [Setting.TARGETS] if any(task.far for task in self.tasks) else []
        found += [Setting.WEIGHTS] if self._weights else []
        found += [Setting.REGULARIZATION] if description.regularization else []
        outputs = description.outputs
        own = description.own_train_step or description.own_loss
        fitting = not own and all(fits(task, outputs[task.output]) for task in self.tasks)
        return found if fitting else [*found, Setting.LOSS]

    def own(self, ended: Sequence[Any]) -> list[list[np.ndarray]]:
        """Return the program's errors on the rows held back: of each task by each measure, the better of two answers.

        Moving averages may be too young for what a net answers when it is not trained.
        """
        self._trial.load(ended)
        asked = self._errors(answers_to(self._model, self._given))
        with unregularized(self._model):
            in_training = self._errors(answers_to(self._model, self._given, training=True))
        pairs = (zip(*both, strict=True) for both in zip(asked, in_training, strict=True))
        return [[min(pair, key=np.mean) for pair in of_task] for of_task in pairs]

    def _errors(self, answers: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        return [task.errors(self._targets[task.target], answers[task.output]) for task in self.tasks]

    def trained(self, kept: Collection[str] = (), rates: Sequence[float] = (1.0,)) -> Iterator[list[list[np.ndarray]]]:
        """Yield the errors of the twin on the rows held back.

        Args:
            kept: Settings that are those of the program.
            rates: What the learning rate of the program's optimizer is multiplied by, one after the other.
        """
        changed = self._scaled is not None and Setting.INPUTS not in kept
        batches = self._scaled[: len(self._batches)] if changed else self._batches
        judged = self._scaled[len(self._batches) :] if changed else self._given
        by_path = {variable.path: variable for variable in self._model.variables}
        multiplied = tf.Variable(1.0, dtype=tf.float32, trainable=False)
        self._trial.restart()
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings(action="ignore"))  # of weights that the outputs do not need
            if Setting.REGULARIZATION not in kept:
                stack.enter_context(unregularized(self._model))
            for head in self._heads if Setting.LOSS not in kept else ():
                if (swap := _swaps(head)) is not None:
                    stack.enter_context(replaced(head, *swap))
            optimizer = keras.optimizers.Adam(STANDARD_RATE)
            if Setting.OPTIMIZER in kept:
                (optimizer,) = optimizers_of(self._model)
                for leaf in leaves(optimizer):
                    stack.enter_context(rate_multiplied(leaf, multiplied))
            run = self._compiled(batches, optimizer, kept)
            for rate in rates:
                self._trial.restart()
                multiplied.assign(rate)
                for path, value in {} if Setting.WEIGHTS in kept else self._weights.items():
                    by_path[path].assign(value)
                run(tf.constant(self._steps))
                yield self._errors(answers_to(self._model, judged))

    def _compiled(self, batches: Sequence[Any], optimizer: Any, kept: Collection[str]) -> Callable[[tf.Tensor], None]:
        pairs = [keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in batches]
        stacked = keras.tree.map_structure(lambda *parts: tf.stack(parts), *pairs)
        weights = self._model.trainable_variables
        if not optimizer.built:
            optimizer.build(weights)

        def step(at: tf.Tensor) -> list[tf.Tensor]:
            x, y = keras.tree.map_structure(lambda part: tf.gather(part, at % len(batches)), stacked)
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(self._loss(x, y, kept))
            optimizer.apply(tape.gradient(loss, weights), weights)
            return [at + 1]

        @tf.function(autograph=False)
        def run(steps: tf.Tensor) -> None:
            tf.while_loop(lambda at: at < steps, step, [tf.constant(0)], parallel_iterations=1)

        return run.get_concrete_function(tf.constant(self._steps))  # called itself, it warns of its traces

    def _loss(self, x: Any, y: Any, kept: Collection[str]) -> tf.Tensor:
        outputs = [tf.convert_to_tensor(one) for one in keras.tree.flatten(self._model(x, training=True))]
        targets, read, total = keras.tree.flatten(y), self._context.probes.loss.outputs, 0.0
        linear = bool(self._heads) and all(_swaps(head) is not None for head in self._heads)
        own = {one.output: as_loss(one.loss) for one in losses_of(self._model, len(outputs))}
        for task in self.tasks:
            target, answer = targets[task.target], outputs[task.output]
            if Setting.LOSS in kept and own.get(task.output) is not None:
                if task.far and Setting.TARGETS not in kept:
                    target = tf.cast(target, tf.float32) / task.size
                factor = self._context.description.outputs[task.output].factor
                total += factor * tf.reduce_mean(tf.cast(own[task.output](target, answer), tf.float32))
            elif task.kind == NUMBERS and Setting.TARGETS in kept:
                total += tf.reduce_mean(tf.square(tf.reshape(tf.cast(target, answer.dtype), answer.shape) - answer))
            else:
                bounded = not linear and _is_bounded(task, read[task.output])
                total += task.loss(target, _logits(answer, task.kind) if bounded else answer)
        if Setting.REGULARIZATION in kept:
            total += tf.add_n([tf.cast(tf.reduce_sum(one), tf.float32) for one in self._model.losses] or [0.0])
        return total

    def compared(self, own: list[list[np.ndarray]], twin: list[list[np.ndarray]]) -> LinearReading:
        """Return the errors of program and twin, of a task by the measure in which the program does best beside it.

        Of several tasks the one counts that the program has learned nothing of, and the twin the most; else their mean.
        """
        found = [[_reading(*pair) for pair in zip(*both, strict=True)] for both in zip(own, twin, strict=True)]
        best = [max(of_task, key=_share) for of_task in found]
        lost = [one for one in best if not one.own < 1.0 - 2.0 * one.own_noise]
        whole = _reading(*(np.mean([rows[0] for rows in one], axis=0) for one in (own, twin)))
        return min(lost, key=_share) if lost else best[0] if len(best) == 1 else whole

    def with_faults(self, found: LinearReading) -> LinearReading:
        """Return the reading with the settings without which the twin falls behind, and a rate at which it does not."""
        differing, alone = self.differing, len(self.differing) == 1
        left = {one: 0.0 if alone else self._share_left(found, next(self.trained([one]))) for one in differing}
        names = tuple(one for one in sorted(left, key=lambda one: left[one]) if left[one] < SHARE_BEHIND)
        if not names and Setting.LOSS in differing:  # it cannot be taken back alone from a user's own step
            others = [one for one in differing if one != Setting.LOSS]
            names = (Setting.LOSS,) if self._share_left(found, next(self.trained(others))) >= SHARE_BEHIND else ()
        tried = RATES if Setting.OPTIMIZER in names else ()
        ends = zip(tried, self.trained([Setting.OPTIMIZER], tried), strict=False)
        rate = next((factor for factor, one in ends if self._share_left(found, one) >= SHARE_BEHIND), None)
        if names == (Setting.LOSS,) and self._context.description.own_train_step:
            rate = next((one for one in RATES if self._share_left(found, self._stepped(one)) >= SHARE_BEHIND), None)
            names = names if rate is None else (Setting.OPTIMIZER,)  # a sum over the samples takes another rate
        kind = self.tasks[0].kind
        loss = f"keras.losses.{class_of(FITTING[kind][0])}({'' if kind == NUMBERS else 'from_logits=True'})"
        return replace(found, faults=tuple(map(str, names)), rate=rate, loss=loss if len(self.tasks) == 1 else "")

    def _stepped(self, rate: float) -> list[list[np.ndarray]]:
        """Return the errors of the program itself, its own step and all, at another rate."""
        self._trial.restart()
        run = self._trial.continued([rate] * self._steps)
        return self.own(self._trial.save()) if run.broken is None else [[np.array([math.inf])]]

    def _share_left(self, found: LinearReading, errors: list[list[np.ndarray]]) -> float:
        left = [np.mean([rows[min(measure, len(rows) - 1)] for rows in errors]) for measure in range(2)]
        return max((1.0 - float(one)) / max(1.0 - found.linear, LEAST) if math.isfinite(one) else 0.0 for one in left)


def _reading(own: np.ndarray, twin: np.ndarray) -> LinearReading:
    ends = float(own.mean()), float(twin.mean())
    noises, rows = (standard_error(twin), standard_error(own - twin)), len(own)
    return LinearReading(0, 1.0, ends[1], noises[0], rows, TWIN, *ends, own_constant=1.0, own_noise=noises[1])


def _share(reading: LinearReading) -> float:
    return math.inf if (share := reading.share()) is None else share


def _is_bounded(task: Task, output: OutputReading) -> bool:
    """Return whether the answers are probabilities."""
    if task.kind == CLASSES:
        return output.sums_to_one == 1.0
    return task.kind == YES_OR_NO and output.min is not None and 0.0 <= output.min <= (output.max or 0.0) <= 1.0


def _logits(answer: tf.Tensor, kind: str) -> tf.Tensor:
    share = tf.clip_by_value(tf.cast(answer, tf.float32), LEAST, 1.0 - LEAST)
    return tf.math.log(share) if kind == CLASSES else tf.math.log(share) - tf.math.log1p(-share)


def _swaps(head: Any) -> tuple[str, Any] | None:
    """Return what a last layer is given so that it is linear, as (attribute, value), or None."""
    if isinstance(head, keras.layers.Softmax | keras.layers.ReLU):
        return "call", lambda inputs, *args, **kwargs: inputs
    if isinstance(head, keras.layers.RNN) or not hasattr(head, "activation"):
        return ("activation", None) if isinstance(head, keras.layers.Layer) and hasattr(head, "kernel") else None
    return "activation", keras.activations.linear


@contextlib.contextmanager
def linear_heads(model: keras.Model) -> Iterator[None]:
    """Train with linear last layers meanwhile, where there are some."""
    graph = model_graph(model)
    with contextlib.ExitStack() as stack:
        for head in [] if graph is None else [graph.nodes[place].operation for place in graph.outputs]:
            if (swap := _swaps(head)) is not None:
                stack.enter_context(replaced(head, *swap))
        yield


def _shapes(batch: Any) -> list[Any]:
    return [None if part is None else tuple(part.shape) for part in keras.tree.flatten(batch)]
