"""A train step, any train step, with the pipeline inside it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace import APPLIED
from gradrecipes.gradients.packing import PackedTensors
from gradrecipes.gradients.pipeline import Pipeline, Sample, StepOutcome
from gradrecipes.training import keras_private
from gradrecipes.training.describe import describe_run
from gradrecipes.training.keras_private import replaced
from gradrecipes.training.layer_map import LayerMap
from gradrecipes.training.taps import LayerTaps

TrainStep = Callable[[Any], dict[str, Any]]


class InstrumentedStep:
    """Run a model's own train step with its gradients led through a pipeline.

    Nothing is computed twice and nothing is left behind: the optimizer's `apply`, the model's
    `compute_loss` and the layers' `call` are shadowed on the instances while the step is traced, and free
    again afterwards, so that a model saved in the middle of a fit holds nothing of this package.

    Args:
        model: A compiled model.
        train_step: The step to run: the model's own.
        pipeline: What measures, decides, clips and records.
        sample: Whether this is the step that measures more: the dearer readings and the layers' outputs.
    """

    def __init__(self, model: keras.Model, train_step: TrainStep, pipeline: Pipeline, *, sample: bool = False):
        self.model = model
        self.train_step = train_step
        self.pipeline = pipeline
        self.taps = LayerTaps(model) if sample else None
        self.variables: list[Any] = []
        self.layer_map: LayerMap | None = None
        self.description: dict[str, Any] = {}
        self._loss: tf.Tensor | None = None
        self._outcome: StepOutcome | None = None

    def __call__(self, data: Any) -> dict[str, Any]:
        """Run one step on a batch, as `keras.Model.train_step` does, and return its logs with ours."""
        model, skip = self.model, self.pipeline.settings.skip
        self._loss = self._outcome = None
        if skip:
            keras_private.build_metrics(model, data)
        state = _State(model) if skip else None
        with self._shadowed():
            logs = self.train_step(data)
        if self._outcome is None:
            raise ValueError(
                f"The train_step of {model.name!r} applied no gradients through model.optimizer, so there is nothing "
                "to monitor or guard. Received a model whose train_step does its updates elsewhere; in a custom "
                "loop, use gr.GradientPipeline(optimizer).apply(gradients, variables, loss=loss) instead."
            )
        if state is not None:
            logs = state.kept_where(tf.equal(self._outcome.code, APPLIED), logs)
        return {**logs, **self._logs()}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copied or unpickled model makes a step of its own

    def _logs(self) -> dict[str, tf.Tensor]:
        settings = self.pipeline.settings
        logs = {"gradient_norm": self._outcome.gradient_norm}
        if settings.skip:
            logs["skipped_steps"] = tf.cast(self.pipeline.skipped_steps, tf.float32)
        if settings.clipping is not None:
            logs["clipped_steps"] = tf.cast(self.pipeline.clipped_steps, tf.float32)
        return logs

    @contextlib.contextmanager
    def _shadowed(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(self.model, "compute_loss", self._hear_loss(self.model.compute_loss)))
            stack.enter_context(piped(self.model.optimizer, self._apply))
            if self.taps is not None:
                stack.enter_context(self.taps.listening())
            yield

    def _hear_loss(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute_loss)
        def compute_and_hear(*args, **kwargs):
            loss = compute_loss(*args, **kwargs)
            if tf.is_tensor(loss):
                self._loss = loss
            return loss

        return compute_and_hear

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[variables]`, the number of entries of each variable that has a gradient."""
        return np.array([int(np.prod(variable.shape)) for variable in self.variables])

    def _learn_layers(self, variables: list[Any]) -> None:
        self.variables = variables
        self.layer_map = LayerMap(self.model, variables, self.taps.layers() if self.taps is not None else [])
        with tf.init_scope():
            self.description = describe_run(self.model, self.layer_map.layers, names=self.layer_map.names)

    def _apply(self, gradients: list[Any], variables: list[Any], apply_gradients: Callable[[Any], None]) -> None:
        if self.layer_map is None:
            self._learn_layers(variables)
        self._outcome = apply_through(
            self.pipeline,
            self.model.optimizer,
            gradients,
            variables,
            apply_gradients,
            loss=self._loss,
            sample=None if self.taps is None else Sample(lambda: _read(variables), self.taps.tensors),
        )


@contextlib.contextmanager
def piped(optimizer: keras.optimizers.Optimizer, handle: Callable[..., None]) -> Iterator[None]:
    """Lead what is applied to an optimizer through `handle(gradients, variables, apply_gradients)`.

    Variables without a gradient are left out; `apply_gradients` takes the gradients of the others.
    """
    apply = optimizer.apply

    def apply_piped(grads, trainable_variables=None):
        variables = list(optimizer._trainable_variables if trainable_variables is None else trainable_variables)
        if not optimizer.built:
            with keras.name_scope(optimizer.name):
                optimizer.build(variables)
        known = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if not known:
            apply(grads, variables)  # lets Keras say that there are no gradients
        kept = [v for _, v in known]

        def apply_gradients(gradients):
            by_variable = {id(v): g for v, g in zip(kept, gradients, strict=True)}
            apply([by_variable.get(id(v)) for v in variables], variables)

        handle([g for g, _ in known], kept, apply_gradients)

    with replaced(optimizer, "apply", apply_piped):
        yield


def apply_through(pipeline, optimizer, gradients, variables, apply_gradients, *, loss, sample=None) -> StepOutcome:
    """Lead gradients through a pipeline into an optimizer's own update, whatever kind of optimizer it is."""
    inner = keras_private.inner_optimizer(optimizer)
    unit = keras_private.loss_scale(optimizer)
    measured = keras_private.accumulated(inner, gradients, variables, unit)

    def apply_with_scalars(transformed):
        with contextlib.ExitStack() as stack:
            stack.enter_context(keras_private.scalars_read_once(inner))
            if measured is not None and pipeline.settings.clipping is not None:
                stack.enter_context(replaced(inner, "_clip_gradients", _clip_accumulated(pipeline, inner)))
            apply_gradients(transformed)

    return pipeline.apply(
        gradients,
        apply_with_scalars,
        measured=measured,
        loss=loss,
        unit=unit,
        bounded_elsewhere=inner.clipvalue is not None,
        sample=sample,
        lower_scale=keras_private.lower_scale(optimizer),
    )


def _read(variables: list[Any]) -> PackedTensors:
    return PackedTensors([tf.identity(tf.convert_to_tensor(variable)) for variable in variables])


def _clip_accumulated(pipeline: Pipeline, optimizer: keras.optimizers.Optimizer) -> Callable[[list[Any]], list[Any]]:
    clip_as_compiled = optimizer._clip_gradients

    def clip(gradients: list[Any]) -> list[Any]:
        return clip_as_compiled(pipeline.clip(gradients))

    return clip


class _State:
    """What a forward pass changes: moving statistics, seeds, metrics; read before a step, put back if it is skipped."""

    def __init__(self, model: keras.Model):
        self._model = model
        variables = [*model.non_trainable_variables, *model.metrics_variables]
        self._variables = list({id(v): v for v in variables}.values())
        self._before = [tf.convert_to_tensor(v) for v in self._variables]

    def kept_where(self, applied: tf.Tensor, logs: dict[str, Any]) -> dict[str, Any]:
        """Put the state back unless the step was applied; return the logs that go with the state."""
        names = [name for name in logs if name in self._model.get_metrics_result()]

        def put_back() -> list[tf.Tensor]:
            for variable, before in zip(self._variables, self._before, strict=True):
                variable.assign(before)
            result = self._model.get_metrics_result()
            return [tf.cast(result[name], tf.convert_to_tensor(logs[name]).dtype) for name in names]

        kept = tf.cond(applied, lambda: [tf.convert_to_tensor(logs[name]) for name in names], put_back)
        return {**logs, **dict(zip(names, kept, strict=True))}
