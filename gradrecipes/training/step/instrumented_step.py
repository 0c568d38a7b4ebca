"""A train step, any train step, with the pipeline inside it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.graphs import current_graph, inlined, require_same_graph
from gradrecipes.compat.keras_private import replaced
from gradrecipes.compat.seeded_operations import draws_by_itself
from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.columns import Columns
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import StepOutcome
from gradrecipes.training.description.describe import describe_run
from gradrecipes.training.fit.layer_map import LayerMap
from gradrecipes.training.step import replicas
from gradrecipes.training.step.activation_capture import LayerTaps
from gradrecipes.training.step.forward_state import ForwardState
from gradrecipes.training.step.multi_worker import as_rows, is_multi_worker
from gradrecipes.training.step.optimizer_hook import apply_through, piped

TrainStep = Callable[[Any], dict[str, Any]]


class InstrumentedStep:
    """Run a model's own train step with its gradients led through a pipeline.

    Nothing is computed twice and nothing is left behind: the optimizers' `apply`, the model's
    `compute_loss` and the layers' `call` are shadowed on the instances while the step is traced, and free
    again afterwards, so that a model saved in the middle of a fit holds nothing of this package.

    Under a strategy of several replicas the step is traced once for each of them; the gradients meet, are
    summed, and go through the pipeline once.

    Args:
        model: A compiled model.
        train_step: The step to run: the model's own. A `tf.function` around it is left out.
        pipeline: What measures, decides, clips and records.
        sample: Whether this is the step that measures more: the dearer readings and the layers' outputs.
        logs: Whether the norm and the counts join the step's logs.

    Attributes:
        serves_all: Whether this step, which measures more, must serve the other steps too: it draws random numbers
            in a way that goes on within one graph only.
    """

    def __init__(
        self, model: keras.Model, train_step: TrainStep, pipeline: Pipeline, *, sample: bool = False, logs: bool = True
    ):
        self.model = model
        self.train_step = inlined(train_step)
        self.pipeline = pipeline
        self.taps = LayerTaps(model) if sample else None
        self.variables: list[Any] = []
        self.layer_map: LayerMap | None = None
        self.serves_all = False
        self.description: dict[str, Any] = {}
        self._tells = logs
        self._of_replica = threading.local()
        self._loss: tf.Tensor | None = None
        self._outcomes: list[StepOutcome] = []
        self._variables: list[Any] = []
        self._updates: dict[str, int] = {}
        self._heard: list[keras.layers.Layer] = []
        self._whole: StepOutcome | None = None
        self._inside = 0
        self._shadows = contextlib.ExitStack()

    def __call__(self, data: Any) -> dict[str, Any]:
        """Run one step on a batch, as `keras.Model.train_step` does, and return its logs with ours."""
        model, skip = self.model, self.pipeline.settings.skip
        self._outcomes, self._variables, self._updates, self._loss, self._whole = [], [], {}, None, None
        self._of_replica.loss, self._of_replica.graph = None, current_graph()
        if skip:
            keras_private.build_metrics(model, data)
        state = ForwardState(model) if skip else None
        with self._shadowed(), state.listening() if state is not None else contextlib.nullcontext():
            logs = self.train_step(data)
        if not self._outcomes and not model.trainable_weights:
            return as_rows(logs) if is_multi_worker(model) else logs  # nothing is trained, and nothing to record
        if not self._outcomes:
            raise ValueError(
                f"The train_step of {model.name!r} applied no gradients through an optimizer of the model, so there is "
                "nothing to monitor or guard. Received a model whose train_step does its updates elsewhere; in a "
                "custom loop, use gr.GradientPipeline(optimizer).apply(gradients, variables, loss=loss) instead."
            )
        self._lay_out()
        if self.layer_map is None:
            self._learn_layers()
        self.serves_all |= self.taps is not None and draws_by_itself(self._of_replica.graph)
        replicas.once(self._record, *([self.taps.tensors(self._heard)] if self.taps is not None else []))
        if state is not None:
            logs = state.kept_where(tf.equal(self._whole.code, APPLIED), logs)
        logs = {**logs, **self._logs()}
        return as_rows(logs) if is_multi_worker(model) else logs

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copied or unpickled model makes a step of its own

    def _record(self, taps: list[tuple[Any, Any]] | None = None) -> None:
        if taps is not None:
            taps = [(_on_all(output), _on_all(gradient)) for output, gradient in taps]
        self._whole = self.pipeline.record(self._outcomes, loss=self._loss, taps=taps, every_step=self.serves_all)

    def _logs(self) -> dict[str, tf.Tensor]:
        settings = self.pipeline.settings
        if not self._tells:
            return {}
        logs = {"gradient_norm": self._whole.gradient_norm}
        if settings.skip:
            logs["skipped_steps"] = tf.cast(self.pipeline.skipped_steps, tf.float32)
        if settings.clipping is not None:
            logs["clipped_steps"] = tf.cast(self.pipeline.clipped_steps, tf.float32)
        return logs

    # -- the shadows -------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _shadowed(self) -> Iterator[None]:
        if self._inside == 0:  # of several replicas, which take turns, the first puts the shadows up
            self._shadows = self._make_shadows()
        self._inside += 1
        try:
            with self.taps.listening() if self.taps is not None else contextlib.nullcontext():
                yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._shadows.close()

    def _make_shadows(self) -> contextlib.ExitStack:
        optimizers = keras_private.optimizers_of(self.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(self.model, "compute_loss", self._hear_loss(self.model.compute_loss)))
            for number, optimizer in enumerate(optimizers):
                handle = functools.partial(self._apply, str(number), optimizer, len(optimizers) == 1)
                stack.enter_context(piped(optimizer, handle))
            if self.taps is not None:
                stack.enter_context(self.taps.installed())
            return stack.pop_all()

    def _hear_loss(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute_loss)
        def compute_and_hear(*args, **kwargs):
            loss = compute_loss(*args, **kwargs)
            if tf.is_tensor(loss) and current_graph() is self._of_replica.graph:
                self._of_replica.loss = loss if loss.shape.rank == 0 else tf.reduce_mean(tf.cast(loss, tf.float32))
            return loss  # of a loss of each sample, Keras too logs the mean

        return compute_and_hear

    def _apply(self, owner, optimizer, alone, gradients, variables, apply_gradients) -> None:
        require_same_graph(self._of_replica.graph, optimizer)

        def run(summed: list[Any], loss: tf.Tensor | None, apply_everywhere: Callable[[Any], Any]) -> None:
            self._loss = loss
            self._variables += variables
            if alone:  # of several optimizers, the variables are known at the end of the step
                self._lay_out()
            earlier = self._updates[owner] = self._updates.get(owner, -1) + 1
            outcome = apply_through(
                self.pipeline,
                optimizer,
                summed,
                variables,
                apply_everywhere,
                loss=loss,
                model=self.model,
                owner=owner,
                earlier=earlier,
                alone=alone,
                sample=self.taps is not None,
            )
            self._outcomes.append(outcome)

        replicas.sum_once(run, gradients, variables, self._of_replica.loss, apply_gradients)

    # -- what the record needs to know ---------------------------------------------------------------
    @property
    def sizes(self) -> np.ndarray:
        """int64 `[variables]`, the number of entries of each variable that has a gradient."""
        return np.array([int(np.prod(variable.shape)) for variable in self.variables])

    @property
    def places(self) -> list[int]:
        """The columns of `variables` in the record."""
        return self.pipeline.columns.places(self.variables)

    def _lay_out(self) -> None:
        if self.pipeline.columns is None:  # room for all: what has a gradient may differ from trace to trace
            self.pipeline.columns = Columns([*self._variables, *self.model.trainable_weights])

    def _learn_layers(self) -> None:
        columns = self.pipeline.columns
        applied = columns.variables if tf.executing_eagerly() else Columns(self._variables).variables
        self.variables = [variable for variable in applied if columns.places([variable]) != [None]]
        self._heard = self.taps.layers() if self.taps is not None else []
        self.layer_map = LayerMap(self.model, self.variables, self._heard)
        with tf.init_scope():
            self.description = describe_run(self.model, self.layer_map.layers, names=self.layer_map.names)


def _on_all(of_replicas: tuple[Any, ...]) -> Any:
    if len(of_replicas) == 1 or any(part is None or not len(part.shape) for part in of_replicas):
        return of_replicas[0]
    return tf.concat([tf.convert_to_tensor(part) for part in of_replicas], axis=0)
