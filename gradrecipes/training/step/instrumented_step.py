"""A train step, any train step, with the pipeline inside it."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_optimizers, keras_private
from gradrecipes.compat.tensorflow_private import current_graph, inlined, require_same_graph
from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.packing import Columns
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import StepResult
from gradrecipes.training.step import replicas
from gradrecipes.training.step.capture import ActivationCapture, LossCapture
from gradrecipes.training.step.optimizer_hook import OptimizerHook, gradients_intercepted

MAX_REASON = 300  # characters of an error that are kept

TrainStep = Callable[[Any], dict[str, Any]]
_RUNNING = threading.local()  # the step that is being traced, by thread: replicas are traced in threads of their own


def running_step() -> InstrumentedStep | None:
    """Return the instrumented step that is being traced, or runs eagerly, around the code that calls."""
    return getattr(_RUNNING, "step", None)


class InstrumentedStep:
    """Run a model's own train step with its gradients sent through a pipeline.

    Nothing is computed twice and nothing is left behind: the optimizers' `apply`, the model's
    `compute_loss` and the layers' `call` are shadowed on the instances while the step is traced, and free
    again afterwards, so that a model saved in the middle of a fit holds nothing of this package.

    Under a strategy of several replicas the step is traced once for each of them; the gradients meet, are
    summed, and go through the pipeline once.

    Args:
        model: A compiled model.
        train_step: The step to run: the model's own. A `tf.function` around it is left out.
        pipeline: What measures, decides, clips and records.
        sample: Whether samples are taken when they are due: layer outputs, weights, updates, histograms.
        log: Whether what `Pipeline.logs` returns joins the logs of the step; each key costs Keras time at every step.
        optional: Whether a step that cannot be instrumented is to be left as it is, without an error.
        terms: Whether the terms of the only loss of a step of its own join the logs; what it returns may be metrics.

    Attributes:
        columns: The variables that had a gradient in the first trace, in the order in which they had it.
        captured_layers: The layers whose outputs are sampled, in the order of their calls.
        graphs: Weak references to the graphs of its traces.
        not_instrumented: Why an optional step could not be instrumented, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        train_step: TrainStep,
        pipeline: Pipeline,
        *,
        sample: bool = False,
        log: bool = False,
        optional: bool = False,
        terms: bool = False,
    ):
        self.model = model
        self.pipeline = pipeline
        self.columns: Columns | None = None
        self.captured_layers: list[keras.layers.Layer] = []
        self.graphs: list[weakref.ref] = []
        self.not_instrumented: str | None = None
        self._optional = optional
        self.train_step = self._inlined(train_step)
        self._capture = ActivationCapture(model) if sample else None
        self._logs, self._terms = log, terms
        self._of_replica = threading.local()
        self._losses = LossCapture(model)
        self._loss: tf.Tensor | None = None
        self._results: list[StepResult] = []
        self._variables: list[Any] = []
        self._updates: dict[str, int] = {}
        self._whole: StepResult | None = None
        if hasattr(pipeline.settings.clipping, "require_matches"):  # a method for each group of layers
            pipeline.settings.clipping.require_matches([variable.path for variable in model.trainable_variables])
        self._inside = 0
        self._passing = False
        self._shadows = contextlib.ExitStack()

    def __call__(self, data: Any) -> Any:
        """Run one step on a batch, as `keras.Model.train_step` does, and return its logs with ours."""
        if self.not_instrumented is not None:
            return self.train_step(data)
        try:
            logs = self._run_instrumented(data)
        except Exception as error:
            self._leave_alone(error)
            raise
        if not self._results and not self.model.trainable_weights:
            return replicas.as_logs(logs, self.model)  # nothing is trained, and nothing to record
        if self.not_instrumented is not None:
            return replicas.as_logs(logs, self.model)
        try:
            return self._recorded(logs)
        except Exception as error:
            if not self._optional:
                raise
            self._leave_alone(error)
            return replicas.as_logs(logs, self.model)

    def _inlined(self, train_step: TrainStep) -> TrainStep:
        try:
            return inlined(train_step)
        except ValueError as error:
            if not self._optional:
                raise
            self._leave_alone(error)
            return train_step

    def _leave_alone(self, error: Exception) -> None:
        """Note why the step, if it is optional, is from now on run as it is."""
        if self._optional and self.not_instrumented is None:
            self.not_instrumented = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_REASON]

    def _run_instrumented(self, data: Any) -> Any:
        self._results, self._variables, self._updates, self._loss, self._whole = [], [], {}, None, None
        self._of_replica.graph = current_graph()
        self._losses.begin()
        if self._of_replica.graph != "eager":
            self.graphs.append(weakref.ref(self._of_replica.graph))
        state = self._of_replica.state = self._forward_state(data)
        around, _RUNNING.step = running_step(), self
        try:
            with self._shadowed(), contextlib.nullcontext() if state is None else state.watching_assignments():
                return self.train_step(data)
        finally:
            _RUNNING.step = around

    def _recorded(self, logs: Any) -> Any:
        model, state = self.model, self._of_replica.state
        if not self._results:
            raise ValueError(
                f"The train_step of {model.name!r} applied no gradients through an optimizer of the model, so there is "
                "nothing to monitor or guard. Received a model whose train_step does its updates elsewhere. Keep the "
                "optimizer, or the gr.GradientPipeline that applies through it, as an attribute of the model: "
                "self.pipeline = gr.GradientPipeline(optimizer)."
            )
        returned = self._losses.of_step(logs)
        self._loss = self._loss if returned is None else returned
        self._assign_columns()
        if self.columns is None:
            self._learn_columns()
        replicas.once(self._record, *([] if self._capture is None else [self._capture.tensors(self.captured_layers)]))
        if state is not None:
            outcome, rescaled = self._whole.outcome, self._whole.rescaled
            if rescaled is not None:  # a scale that comes down, as it does without us: Keras counts such a batch
                outcome = tf.where(rescaled, tf.constant(APPLIED, outcome.dtype), outcome)
            logs = state.kept_where(outcome, logs)
        if self._logs and isinstance(logs, dict):  # Keras takes a train step that returns something else as it is
            alone = len(logs) == 1 or len(keras_private.optimizers_of(model)) == 1
            if self._terms and alone and keras_private.has_own_train_step(model):
                from gradrecipes.training.step.loss_terms import loss_terms

                logs = {**logs, **loss_terms(self._loss)}
            logs = {**logs, **self.pipeline.logs()}
        return replicas.as_logs(logs, model)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copied or unpickled model makes a step of its own

    def _forward_state(self, data: Any) -> Any:
        if not self.pipeline.settings.skip:
            return None
        from gradrecipes.training.step.forward_state import ForwardState

        keras_private.build_metrics(self.model, data)
        return ForwardState(self.model, self.pipeline.last_loss)

    def _record(self, activations: list[tuple[Any, Any]] | None = None) -> None:
        if activations is not None:
            activations = [(_of_all_replicas(output), _of_all_replicas(gradient)) for output, gradient in activations]
        self._whole = self.pipeline.record(self._results, loss=self._loss, activations=activations)
        if self._logs:
            self.pipeline.epoch_norms.add(self._whole)

    # -- the shadows -------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _shadowed(self) -> Iterator[None]:
        if self._inside == 0:  # of several replicas, which take turns, the first puts the shadows up
            self._shadows = self._make_shadows()
        self._inside += 1
        try:
            with contextlib.nullcontext() if self._capture is None else self._capture.capturing():
                yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._shadows.close()

    def _make_shadows(self) -> contextlib.ExitStack:
        optimizers = keras_private.optimizers_of(self.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._losses.installed())
            for number, optimizer in enumerate(optimizers):
                receive = functools.partial(self._receive, str(number), optimizer, len(optimizers) == 1)
                stack.enter_context(gradients_intercepted(optimizer, receive))
            if self._capture is not None:
                stack.enter_context(self._capture.installed())
            return stack.pop_all()

    def instruments(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Return whether an optimizer is one of the model."""
        return any(optimizer is one for one in keras_private.optimizers_of(self.model))

    def receive(self, optimizer, gradients, variables, apply_gradients, loss, *, judged) -> StepResult | None:
        """Take the gradients that a pipeline of the program's own is about to apply.

        Args:
            optimizer: The optimizer.
            gradients: The gradients.
            variables: What they belong to.
            apply_gradients: Sends what is let through its way.
            loss: float scalar, the loss of the batch, or None where it is not known.
            judged: Returns what became of the step in the end, given what was decided here.

        Returns:
            What became of it; None where the step is not instrumented, and the gradients went their way.
        """
        optimizers = keras_private.optimizers_of(self.model)
        key = str(next(number for number, one in enumerate(optimizers) if one is optimizer))

        def pass_on(let_through: list[Any]) -> None:
            self._passing = True  # from here on the optimizer's own update is the program's
            try:
                apply_gradients(let_through)
            finally:
                self._passing = False

        before, alone = len(self._results), len(optimizers) == 1
        self._receive(key, optimizer, alone, gradients, variables, pass_on, loss=loss, through=True)
        with self._not_watched():
            self._results[before:] = results = [judged(result) for result in self._results[before:]]
        return results[0] if results else None

    def _receive(self, key, optimizer, alone, gradients, variables, apply_gradients, **how) -> None:
        if self._passing or self.not_instrumented is not None:
            apply_gradients(gradients)
            return
        applied = False

        def update_and_note(gradients: list[Any]) -> None:
            nonlocal applied
            applied = True
            apply_gradients(gradients)

        try:
            require_same_graph(self._of_replica.graph, optimizer)
            self._send(key, optimizer, alone, gradients, variables, update_and_note, **how)
        except Exception as error:
            if applied or not self._optional:
                raise
            self._leave_alone(error)  # to raise it in a `tf.function` of the program would leave that one spoilt
            apply_gradients(gradients)

    def _send(self, key, optimizer, alone, gradients, variables, apply_gradients, *, loss=None, through=False) -> None:
        if loss is None:
            loss = self._losses.at_update(variables, keras_optimizers.loss_scale(optimizer), alone=alone)
        hook = OptimizerHook(optimizer, self.pipeline, key=key, model=self.model, sample=self._capture is not None)

        def run(summed: list[Any], loss: tf.Tensor | None, apply_everywhere: Callable[[Any], Any]) -> None:
            self._loss = loss
            self._variables += variables
            if alone:  # of several optimizers, the variables are known at the end of the step
                self._assign_columns()
            earlier = self._updates[key] = self._updates.get(key, -1) + 1
            how = {"loss": loss, "earlier": earlier, "alone": alone, "through_another": through}
            self._results.append(hook.send(summed, variables, apply_everywhere, **how))

        with self._not_watched():
            replicas.sum_once(run, gradients, variables, loss, apply_gradients)

    def _not_watched(self) -> contextlib.AbstractContextManager[None]:
        """Return what lets a skip keep the assignments within the `with` block."""
        return contextlib.nullcontext() if self._of_replica.state is None else self._of_replica.state.ignoring()

    # -- what the record needs to know ---------------------------------------------------------------
    @property
    def variables(self) -> list[Any]:
        """The variables that had a gradient."""
        return [] if self.columns is None else self.columns.variables

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[variables]`, the number of entries of each variable that has a gradient."""
        return np.array([int(np.prod(variable.shape)) for variable in self.variables])

    @property
    def indices(self) -> list[int]:
        """The columns of `variables` in the record."""
        return self.pipeline.columns.indices(self.variables)

    def _assign_columns(self) -> None:
        if self.pipeline.columns is None:  # room for all: what has a gradient may differ from trace to trace
            self.pipeline.columns = Columns([*self._variables, *self.model.trainable_weights])

    def _learn_columns(self) -> None:
        recorded = self.pipeline.columns
        applied = recorded.variables if tf.executing_eagerly() else Columns(self._variables).variables
        self.columns = Columns([variable for variable in applied if recorded.indices([variable]) != [None]])
        self.captured_layers = [] if self._capture is None else self._capture.layers()


def _of_all_replicas(of_replicas: tuple[Any, ...]) -> Any:
    if len(of_replicas) == 1 or any(part is None or not len(part.shape) for part in of_replicas):
        return of_replicas[0]
    return tf.concat([tf.convert_to_tensor(part) for part in of_replicas], axis=0)
