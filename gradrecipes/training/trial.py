"""Train a model for a few steps to see how it goes, vary one thing at a time, and put everything back."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_optimizers, keras_private
from gradrecipes.compat.tensorflow_private import targets_reported, variable_of
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.autopsy import Autopsy
from gradrecipes.core.trace.probes import LayerSignal
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.recorder import STEP_COLUMNS
from gradrecipes.gradients.update import PipelineSettings
from gradrecipes.training.autopsy import autopsy
from gradrecipes.training.building import build_on, create_all
from gradrecipes.training.fit.trace_writer import TraceWriter, WeightSamples
from gradrecipes.training.recovery.model_state import variables_of
from gradrecipes.training.step.constant_noise import constant_noise
from gradrecipes.training.step.instrumented_step import InstrumentedStep
from gradrecipes.training.step.loss_terms import CutTerms, cut_off_terms, has_moving_target

SCALER_PATIENCE = 20  # steps that a loss scaler may leave out while it looks for its scale: 2^15 halved twenty times
EARLY_SAMPLES, RARE_SAMPLES = 3, 20  # steps whose weights are read before and after: the first ones, and every so many
SECONDS_AT_MOST = 60.0  # for the steps of one run; a net whose steps take seconds is judged by fewer


@dataclass(frozen=True)
class TrialRun:
    """How a few steps went.

    Args:
        loss: float64 `[steps]`, the loss of each batch; NaN where the train step computes none that is seen.
        gradient_norm: float64 `[steps]`, global L2 norm of the unscaled gradient.
        broken: Step whose loss or gradient was not finite and that ended the run, or None.
        logs: What the train step returned, batch by batch, by name.
        seconds: Time for all steps but the first, which is traced.
    """

    loss: np.ndarray
    gradient_norm: np.ndarray
    broken: int | None
    logs: dict[str, list[float]]
    seconds: float


class Trial:
    """Run a model's own train step from one and the same start, again and again, traced once.

    In the graph only the norms of the gradients are added; weights and updates are read by the host, now and then,
    for tracing is what costs the time. Use it as a context manager: whatever happens inside, the model is afterwards
    what it was, to the bit.

    Args:
        model: A compiled, built model.
        batches: What `train_step` gets, one after the other, and from the beginning again.
        steps: The most steps that a run may have.
        outputs: What the signal probe read of the layers, in the order of their calls: they are listed in the record,
            and their outputs stand in its first sample.
        plain: Whether the steps run as the model's own, without a record.

    Attributes:
        trace: The record of the recorded run.
        autopsy: What broke the recorded run, or None.
        asked_for_none: Whether a recorded step asked for the gradients of no weight at all.
        moving_target: Whether its loss reads what weights make and `tf.stop_gradient` holds fixed.
        constant_noise: Operation that draws the same noise at each step, or "".
        cut_off: Terms of its losses that no slope leads from to the weights in which they are differentiated.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Sequence[Any],
        *,
        steps: int,
        outputs: Sequence[LayerSignal] = (),
        plain: bool = False,
    ):
        self.model = model
        self._plain = plain
        self._outputs = list(outputs)
        self.batches = list(batches)
        self.steps = steps
        self.trace = Trace()
        self.autopsy: Autopsy | None = None
        self.broken_batch: int | None = None
        self._rate = tf.Variable(1.0, dtype=tf.float32, trainable=False)
        self.asked_for_none = self.moving_target = False
        self.constant_noise = ""
        self.cut_off = CutTerms({}, set())
        self._asked: set[int] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Trial:
        try:
            self._enter()
        except BaseException:  # what is in place by then is taken out again
            self._stack.close()
            raise
        return self

    def _enter(self) -> None:
        model = self.model
        keras_private.build_optimizer(model)
        keras_private.build_metrics(model, self.batches[0])
        create_all(model, self.batches[0])
        self._start = [(variable, np.array(variable)) for variable in variables_of(model)]
        before, stop, history = model.train_function, model.stop_training, getattr(model, "history", None)
        self._stack.callback(self._put_back, before, stop, history)
        self._stack.enter_context(keras_private.replaced(model, "steps_per_execution", 1))
        self._optimizers = keras_private.optimizers_of(model)
        self._patience = SCALER_PATIENCE if any(map(keras_optimizers.lower_scale, self._optimizers)) else 0
        for optimizer in self._optimizers:
            for leaf in keras_private.leaves(optimizer):
                self._stack.enter_context(keras_optimizers.rate_multiplied(leaf, self._rate))
        settings = PipelineSettings(record=True, capacity=2 * self.steps, by_batch=True, xla=bool(model.jit_compile))
        self._pipeline = Pipeline(settings)
        self._instrumented = InstrumentedStep(
            model, model.train_step, self._pipeline, log=True, optional=True, terms=True
        )
        train_step = model.train_step if self._plain else self._instrumented
        self._step = keras_private.compile_train_step(model, train_step)
        self._writer = TraceWriter(self._pipeline, self._instrumented, trace=self.trace)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        """Put the model back to where it was."""
        for variable, value in self._start:
            variable.assign(value)
        known = {id(variable) for variable, _ in self._start}
        self._reset_slots(known)
        for variable in self.model.metrics_variables:  # what was created meanwhile started from zero
            if id(variable) not in known:
                variable.assign(np.zeros(variable.shape, variable.dtype))

    def _reset_slots(self, known: Collection[int] = ()) -> None:
        """Put the slots of the optimizers, but for those with a known id, to the values that they begin with."""
        for optimizer in self._optimizers:
            if all(id(variable) in known for variable in optimizer.variables):
                continue
            for variable, value in keras_optimizers.initial_slots(optimizer):
                if id(variable) not in known:
                    variable.assign(value)

    def run_through(self) -> None:
        """Run a step on each batch, and go back."""
        for batch in self.batches:
            self._step([batch])
        self.restart()

    def recorded(self, steps: int) -> TrialRun:
        """Run the first steps as the user would, keep the record in `trace`, and stay at the last finite step."""
        self._writer.begin_epoch(0)
        samples = WeightSamples(self.model)
        with targets_reported(self._note_asked):
            run = self._run(self.batches, steps, samples=samples)
        by_name = {layer.name: layer for layer in keras_private.sublayers(self.model)}
        names = [layer.name for layer in self._outputs if layer.name in by_name]
        self._instrumented.captured_layers = [by_name[name] for name in names]
        self._writer.collect()
        self.trace = self._writer.trace
        samples.add_to(self._writer, self._instrumented.variables, outputs=self._outputs)
        if run.broken is not None:
            self.examine(run.broken)
        return self._with_readings(run, self.trace.loss.astype(float), self.trace.gradient_norm.astype(float))

    def varied(
        self,
        steps: int,
        *,
        rate: float = 1.0,
        batches: Sequence[Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
        fresh_slots: bool = False,
        warm_up: bool = False,
    ) -> TrialRun:
        """Run the same steps with one thing changed, from the start.

        Args:
            steps: How many.
            rate: What the learning rate is multiplied by.
            batches: Other batches of the same shapes and dtypes.
            weights: Other initial values, by the paths of the variables.
            fresh_slots: Whether the optimizer begins from nothing instead of from where it was.
            warm_up: Whether the learning rate rises linearly from 0 over the first half of the steps.
        """
        self.restart()
        by_path = {variable.path: variable for variable in self.model.variables}
        for path, value in (weights or {}).items():
            by_path[path].assign(value)
        if fresh_slots:
            self._reset_slots()
        self._readings()
        self._rate.assign(rate)
        ramp = max(1, steps // 2) if warm_up else 0
        factors = [min(1.0, (step + 1) / ramp) for step in range(ramp)]
        try:
            run = self._run(self.batches if batches is None else batches, steps, factors=factors)
        finally:
            self._rate.assign(1.0)
        rows = self._readings()
        return self._with_readings(run, rows[:, 0], rows[:, 1])

    def continued(self, factors: Sequence[float]) -> TrialRun:
        """Run more steps from where the last run ended, the learning rate of each multiplied by a factor.

        Args:
            factors: One for each step; a negative one is minus the rate itself.
        """
        self._readings()
        block = max(1, self.steps // len(self.batches)) * len(self.batches)  # what the recorder keeps, and less
        loss, norm, seconds, broken = [], [], 0.0, None
        logs: dict[str, list[float]] = {}
        try:
            for first in range(0, len(factors), block):
                part = factors[first : first + block]
                run = self._run(self.batches, len(part), factors=part)
                rows = self._readings()
                run = self._with_readings(run, rows[:, 0], rows[:, 1])
                loss.append(run.loss)
                norm.append(run.gradient_norm)
                seconds += run.seconds
                for name, values in run.logs.items():
                    logs.setdefault(name, []).extend(values)
                broken = None if run.broken is None else first + run.broken
                if broken is not None or seconds > SECONDS_AT_MOST:
                    break
        finally:
            self._rate.assign(1.0)
        return TrialRun(np.concatenate(loss), np.concatenate(norm), broken, logs, seconds)

    def _note_asked(self, target: Any, sources: Any) -> None:
        asked = keras.tree.flatten(sources)
        self.asked_for_none = self.asked_for_none or not asked
        self.moving_target = self.moving_target or any(map(has_moving_target, keras.tree.flatten(target)))
        self._asked.update(map(variable_key, asked))
        self.cut_off = self.cut_off.joined(cut_off_terms(target, sources))
        graph = getattr(next(iter(keras.tree.flatten(target)), None), "graph", None)
        self.constant_noise = self.constant_noise or constant_noise(graph)

    @property
    def applied(self) -> bool:
        """Whether a step applied gradients, as far as could be seen."""
        return bool(self._instrumented.variables)

    def unmoved(self) -> list[tuple[Any, bool, bool]]:
        """Return the trainable weights that have the values of the start, after a recorded run.

        Returns:
            Each as (variable, whether the step asked for its gradient, whether it had one).
        """
        start = {id(variable): value for variable, value in self._start}
        had = set(map(variable_key, self._instrumented.variables))
        return [
            (variable, variable_key(variable) in self._asked, variable_key(variable) in had)
            for variable in self.model.trainable_variables
            if id(variable) in start and np.array_equal(np.asarray(variable), start[id(variable)])
        ]

    def save(self) -> list[tuple[Any, np.ndarray]]:
        """Return every variable with its value, for `load`."""
        return [(variable, np.array(variable)) for variable in variables_of(self.model)]

    def load(self, saved: Sequence[tuple[Any, np.ndarray]]) -> None:
        """Put the variables back to what `save` returned."""
        for variable, value in saved:
            variable.assign(value)

    def _readings(self) -> np.ndarray:
        """Take float64 `[steps, columns]` from the device; none where no gradient was ever applied."""
        recorder = self._pipeline.recorder
        if recorder is None:
            return np.zeros((0, len(STEP_COLUMNS)))
        return recorder.take().steps[:, : len(STEP_COLUMNS)].astype(float)

    def _run(
        self,
        batches: Sequence[Any],
        steps: int,
        *,
        samples: WeightSamples | None = None,
        factors: Sequence[float] = (),
    ) -> TrialRun:
        logs: dict[str, list[float]] = {}
        in_a_row, broken, began = 0, None, time.monotonic()
        for step in range(steps):
            if step < len(factors):
                self._rate.assign(factors[step])
            self.model.reset_metrics()  # else the logs show means over all steps so far
            self._pipeline.epoch_norms.reset()
            sampled = samples is not None and (step < EARLY_SAMPLES or step % RARE_SAMPLES == 0)
            if sampled:
                samples.before(step)
            returned = self._step([batches[step % len(batches)]])
            if sampled:
                samples.after()
            self._note(logs, returned)
            began = time.monotonic() if step == 0 else began
            finite = all(math.isfinite(logs[name][-1]) for name in ("loss", "gradient_norm") if name in logs)
            in_a_row = 0 if finite else in_a_row + 1
            if in_a_row > self._patience:
                broken = step
                break
            if time.monotonic() - began > SECONDS_AT_MOST:
                break
        return TrialRun(np.zeros(0), np.zeros(0), broken, logs, time.monotonic() - began)

    def _note(self, logs: dict[str, list[float]], returned: Any) -> None:
        if not isinstance(returned, dict):
            return
        for name, value in returned.items():
            if value is not None and not isinstance(value, dict | list | tuple) and np.ndim(value) == 0:
                logs.setdefault(name, []).append(float(value))

    def examine(self, step: int) -> None:
        """Go back to the step before, by the same steps from the start, and look at the one that broke."""
        self.broken_batch = step % len(self.batches)
        self.restart()
        self._run(self.batches, step)
        self._readings()
        try:
            self.autopsy = autopsy(self.model, self.batches[self.broken_batch])
        except Exception as error:  # an odd train step; the record says that it broke, only not where
            self.autopsy = Autopsy(notes=(f"The step could not be examined: {error}",), complete=False)

    def _with_readings(self, run: TrialRun, loss: np.ndarray, norm: np.ndarray) -> TrialRun:
        logged = np.array(run.logs.get("loss", []), dtype=float)
        if len(logged) and np.isnan(loss).all():
            loss = logged
        return TrialRun(loss, norm, run.broken, run.logs, run.seconds)

    def _put_back(self, train_function: Any, stop_training: bool, history: Any) -> None:
        self.restart()
        known = {id(variable) for variable, _ in self._start}
        for metric in self.model.metrics:  # those that came into being meanwhile begin as new ones do
            if metric.variables and not any(id(variable) in known for variable in metric.variables):
                metric.reset_state()
        self.model.train_function, self.model.stop_training = train_function, stop_training
        if history is not None:
            self.model.history = history


def step_error(model: keras.Model, batches: Sequence[Any]) -> Exception | None:
    """Return what the model's own train step raises on a batch, or None; the model is afterwards what it was."""
    try:
        with Trial(model, batches, steps=1, plain=True) as trial:
            trial.run_through()
    except Exception as error:
        return error
    return None


def build_error(model: keras.Model, batch: Any) -> Exception | None:
    """Build a model on one batch; return the error if neither its call nor its train step can."""
    try:
        build_on(model, batch)
    except Exception as error:
        own = keras_private.has_own_train_step(model)  # another step builds it as well
        return error if own or step_error(model, [batch]) is not None else None
    return None


def variable_key(variable: Any) -> int:
    """Return what tells variables apart, whether it is Keras' or the one of TensorFlow that it holds."""
    return id(variable_of(variable))


def finite(value: float) -> float | None:
    """Return a number for JSON; None for one that is not finite."""
    return float(value) if math.isfinite(value) else None
