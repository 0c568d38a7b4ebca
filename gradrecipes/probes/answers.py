"""Whether what a training learned depends on its inputs: its loss beside that of equal answers for all samples.

A step is run as it is, and with each answer of its nets replaced by the mean of the batch. Where the second loss is no
higher, the net makes no use of its inputs, however far the loss fell.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import leaves, optimizers_of, replaced, sublayers
from gradrecipes.compat.tensorflow_private import inlined, targets_reported, without_parts
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.trial_reading import AnswersReading
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.step.loss_terms import ancestors, contributions
from gradrecipes.training.trial import Trial

logger = logging.getLogger(__name__)

MAX_CALLS = 40  # of nets in one step, for which it is asked which of them answer
SAME_TERM = 1e-5  # relative difference of a term that the answers have no part in
SAME_LOGGED = 1e-3  # relative difference of a term and of what the step returns of it


class Answers:
    """Compare the loss of a step with that of answers that are equal for all samples of a batch.

    Answers are what the trained nets that the step calls give, but for those that another one of them takes.

    Args:
        trial: One that was entered. Its weights are left as they are.
    """

    def __init__(self, trial: Trial):
        self._trial, self._model = trial, trial.model
        self._step = inlined(self._model.train_step)
        self._answering: set[int] = set()
        self._entries = 0
        self._count = 1
        self._traced = tf.function(self._evaluated, autograph=False)

    @classmethod
    def asked(cls, trial: Trial, description: Description, *, known: bool) -> Answers | None:
        """Return what compares the answers, where no formula tells the loss of the best constant prediction."""
        optimizer = description.optimizer
        if optimizer is None or optimizer.count != 1 or optimizer.loss_scaler:
            return None
        return cls(trial) if description.own_train_step or description.own_loss or not known else None

    def compared(self) -> AnswersReading | None:
        """Return the two losses with the weights of this moment; None of a step where that cannot be measured."""
        trial = self._trial
        kept = trial.save()
        seeds = [(variable, value) for variable, value in kept if value.dtype.kind in "iu"]
        try:
            if not self._answering:
                self._answering = self._find_answers()
            rows = []
            every = np.ones(self._count, bool)
            alone = [place != np.arange(self._count) for place in range(self._count)] if self._have_targets() else []
            for batch in trial.batches:
                compared = []
                for own in (every, ~every, *alone):
                    trial.load(seeds)
                    compared.append(np.asarray(self._traced(batch, tf.constant(own)), np.float64))
                rows.append(compared)
            return _reading(np.array(rows), self._entries)
        except Exception:  # a step that does something of its own
            logger.debug("The answers of %r could not be compared.", self._model, exc_info=True)
            return None
        finally:
            trial.load(kept)

    def held_back(self, found: AnswersReading, logs: Mapping[str, Sequence[float]], steps: int) -> AnswersReading:
        """Return the reading with the term of the loss that keeps the answers from depending on the inputs, if any.

        The steps are run without the terms that the answers have no part in, and, if that makes the answers depend on
        the inputs, go on with them. Where what was learned is lost again, these terms are what holds the net back.

        Args:
            found: That of the trial at its end.
            logs: What the trial's steps returned, by name.
            steps: Of either run.
        """
        trial = self._trial
        try:
            trial.restart()
            first = self.compared()
            beside = () if first is None else first.beside  # in the end all terms may be the same
            if first is None or not beside:
                return found
            with self._without_beside(), Trial(self._model, trial.batches, steps=trial.steps) as freed:
                if freed.continued([1.0] * steps).broken is not None:
                    return found
                ended = freed.save()
            trial.load(ended)
            without = self.compared()
            if without is None or not without.depend:
                return found
            again = trial.continued([1.0] * steps)
            back = self.compared() if again.broken is None else None
            if back is None or back.depend:
                return found
            return replace(found, held_by=_named(beside, first, logs), gain=without.constant - without.own)
        except Exception:
            logger.debug("The terms of the loss of %r could not be left out.", self._model, exc_info=True)
            return found
        finally:
            trial.restart()

    def _find_answers(self) -> set[int]:
        """Return which calls of trained nets give the answers, by their order."""
        made: list[list[tf.Tensor]] = []
        targets: list[Any] = []

        def note(place: int, given: Any) -> Any:
            made.append([one for one in keras.tree.flatten(given) if _is_answer(one)])
            return given

        def traced(batch: Any) -> tf.Tensor:
            targets.append(self._target(batch, note))
            return targets[-1]

        tf.function(traced, autograph=False).get_concrete_function(self._trial.batches[0])
        if not 0 < len(made) <= MAX_CALLS:
            raise ValueError(f"{len(made)} nets are called in one step.")
        seen = _ancestors([targets[-1]])
        behind = [_ancestors(outputs) for outputs in made]
        answering = {
            place
            for place, outputs in enumerate(made)
            if any(name in seen for one in outputs for name in _read_as(one))
            if not any(one.op.name in later for later in behind[place + 1 :] for one in outputs)
        }
        if not answering:
            raise ValueError("The loss depends on no net of the step.")
        for place, outputs in enumerate(made):  # a loss of derivatives reads what the answers are made of
            others = set().union(*behind[:place], *behind[place + 1 :])
            read = {name for one in outputs for name in _read_as(one)}
            if not seen.intersection(read) and seen.intersection(behind[place] - others - read):
                raise ValueError("The loss depends on what a net computes, and not on its answers.")
        sizes = [one.shape[1:].num_elements() or 0 for place in answering for one in made[place]]
        self._entries, self._count = max(sizes, default=0), len(sizes)
        return answering

    def _have_targets(self) -> bool:
        """Return whether one call gives several answers, and there is a target for each of them."""
        y = keras.utils.unpack_x_y_sample_weight(self._trial.batches[0])[1]
        return y is not None and len(self._answering) == 1 and len(keras.tree.flatten(y)) == self._count > 1

    def _evaluated(self, batch: Any, own: tf.Tensor) -> tf.Tensor:
        """Return float32 `[2 + terms]`: the loss of a step, its steepest slope in an answer, and what it is the sum of.

        Args:
            batch: What the step gets.
            own: bool `[answers]`, which of them stay as they are; the others become the mean of the batch.
        """
        watched: list[tf.Tensor] = []

        def swapped(one: Any) -> Any:
            if not _is_answer(one):
                return one
            watched.append(tf.identity(one))
            tape.watch(watched[-1])
            return _mean_unless(own[len(watched) - 1], watched[-1])

        def swap(place: int, given: Any) -> Any:
            return keras.tree.map_structure(swapped, given) if place in self._answering else given

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            loss = self._target(batch, swap)
        slopes = tape.gradient(loss, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        steepest = tf.reduce_max([tf.reduce_max(tf.abs(tf.cast(slope, tf.float32))) for slope in slopes])
        parts = [tf.reduce_sum(weight * tf.cast(part, tf.float32)) for part, weight in contributions(loss)]
        return tf.stack([tf.cast(tf.reduce_mean(loss), tf.float32), steepest, *parts])

    def _target(self, batch: Any, change: Callable[[int, Any], Any]) -> tf.Tensor:
        """Run the step without its updates, and return what it differentiates last.

        Args:
            batch: What the step gets.
            change: Called with the number of the call of a trained net and what it gave; returns what the step gets.
        """
        targets: list[Any] = []
        with self._changed(change), contextlib.ExitStack() as stack:
            for optimizer in optimizers_of(self._model):
                for one in (optimizer, *leaves(optimizer)):
                    stack.enter_context(replaced(one, "apply", lambda *args, **kwargs: None))
            stack.enter_context(targets_reported(lambda target, _: targets.append(target)))
            self._step(batch)
        (loss,) = keras.tree.flatten(targets[-1])
        return loss

    @contextlib.contextmanager
    def _changed(self, change: Callable[[int, Any], Any]) -> Iterator[None]:
        """Change what trained nets give, within the `with` block: of each call that no other one of them makes."""
        places, inside = itertools.count(), [False]

        def changed(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def calling(*args: Any, **kwargs: Any) -> Any:
                if inside[0]:
                    return call(*args, **kwargs)
                inside[0] = True
                try:
                    given = call(*args, **kwargs)
                finally:
                    inside[0] = False
                return change(next(places), given)

            return calling

        with contextlib.ExitStack() as stack:
            for net in (self._model, *sublayers(self._model)):
                if net.trainable_variables:
                    stack.enter_context(replaced(net, "call", changed(net.call)))
            yield

    @contextlib.contextmanager
    def _without_beside(self) -> Iterator[None]:
        """Let steps that are traced within the block differentiate only what depends on the answers."""
        answers: list[str] = []

        def note(place: int, given: Any) -> Any:
            made = [one for one in keras.tree.flatten(given) if _is_answer(one)]
            answers.extend(name for one in made if place in self._answering for name in _read_as(one))
            return given

        def beside(loss: Any) -> list[tuple[Any, Any]]:
            parts = contributions(loss)
            lone = [(part, weight) for part, weight in parts if not _ancestors([part]).intersection(answers)]
            return lone if len(lone) < len(parts) else []

        with self._changed(note), without_parts(beside):
            yield


def spread_over_samples(values: np.ndarray) -> float | None:
    """Return the largest standard deviation of an entry over the samples, over the root mean square of all entries.

    Example:
        >>> spread_over_samples(np.array([[1.0, 2.0], [1.0, 2.0]]))
        0.0
    """
    if values.ndim < 1 or len(values) < 2 or not np.isfinite(values).all() or not values.any():
        return None
    values = values.astype(np.float64)
    return float(values.std(axis=0).max() / np.sqrt(np.mean(np.square(values))))


def sample_spread(model: keras.Model, batch: Any) -> float | None:
    """Return how far the answers of a model to the samples of a batch differ; None where they cannot be had.

    Args:
        model: A built model. It is left as it was.
        batch: What `train_step` gets.
    """
    try:
        with preserve_state(model):
            outputs = keras.tree.flatten(model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=False))
            spreads = [spread_over_samples(np.asarray(output)) for output in outputs]
    except Exception:  # a model that is not called as a whole
        return None
    known = [spread for spread in spreads if spread is not None]
    return max(known) if known and len(known) == len(spreads) else None


def _reading(rows: np.ndarray, entries: int) -> AnswersReading | None:
    """Return the reading of float64 `[batches, 2 + answers, 2 + terms]`: as it is, with equal answers, one by one."""
    if not np.isfinite(rows[:, :, 0]).all():
        return None
    own, equal = rows[:, 0], rows[:, 1]
    raised = rows[:, 1:, 0] - own[:, :1]
    means, several = raised.mean(axis=0), len(raised) > 1
    noises = raised.std(axis=0, ddof=1) / math.sqrt(len(raised)) if several else np.zeros(len(means))
    same = np.isclose(own[:, 2:], equal[:, 2:], rtol=SAME_TERM, atol=0.0).all(axis=0)
    beside = tuple(int(place) for place in np.flatnonzero(same)) if not same.all() else ()
    sizes = tuple(float(value) for value in own[:, 2:].mean(axis=0))
    lost = tuple(int(place) for place in np.flatnonzero(means[1:] <= 2.0 * noises[1:]))
    ends = float(own[:, 0].mean()), float(equal[:, 0].mean())
    return AnswersReading(*ends, float(noises[0]), entries, beside, sizes, lost=lost, slope=float(own[:, 1].max()))


def _named(beside: Sequence[int], first: AnswersReading, logs: Mapping[str, Sequence[float]]) -> str:
    """Return what the step calls the largest of these terms, or its place in the sum."""
    place = max(beside, key=lambda one: abs(first.terms[one]))
    size = first.terms[place]
    ratios = {name: size / values[0] for name, values in logs.items() if name != "loss" and values and values[0]}
    exact = [name for name, ratio in ratios.items() if abs(ratio - 1.0) < SAME_LOGGED]
    named = [name for name in ratios if "kl" in name.lower()]
    found = [*exact, *named]
    return repr(found[0]) if found else f"term {place + 1} of the sum"


def _is_answer(one: Any) -> bool:
    return tf.is_tensor(one) and one.dtype.is_floating and one.shape.rank not in (None, 0)


def _read_as(one: tf.Tensor) -> list[str]:
    """Return the names of the operations that a loss may read an answer from: Keras' own take a sigmoid's logits."""
    return [one.op.name, *(part.op.name for part in one.op.inputs if one.op.type in ("Sigmoid", "Softmax"))]


def _mean_unless(own: tf.Tensor, one: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(one, axis=0, keepdims=True)  # it keeps the slopes in the inputs, as losses of them need
    return tf.where(own, one, tf.broadcast_to(mean, tf.shape(one)))


def _ancestors(tensors: Iterable[tf.Tensor]) -> set[str]:
    return {made.name for made in ancestors(tensors)}
