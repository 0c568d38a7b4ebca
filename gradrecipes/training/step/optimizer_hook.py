"""Between the gradients of a train step and an optimizer's own update."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_optimizers, keras_private
from gradrecipes.compat.keras_optimizers import (
    clipped_first,
    decayed_as_in_a_graph,
    is_of_keras,
    runs_as_written,
    scalars_read_once,
    scales_in_update,
    updated_in_sequence,
    updated_variables,
)
from gradrecipes.compat.keras_private import replaced
from gradrecipes.compat.tensorflow_private import variable_of
from gradrecipes.gradients.packing import LARGE, PackedTensors
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import Accumulation, StepResult, Update
from gradrecipes.training.step import replicas

Receive = Callable[[list[Any], list[Any], Callable[[Any], Any]], None]


@contextlib.contextmanager
def gradients_intercepted(optimizer: keras.optimizers.Optimizer, receive: Receive) -> Iterator[None]:
    """Hand what a train step applies to an optimizer to `receive(gradients, variables, apply_gradients)` instead.

    Variables without a gradient are left out; `apply_gradients` takes the gradients of the others.
    """
    original = optimizer.apply

    @tf.autograph.experimental.do_not_convert  # no Python in it branches on a tensor
    def intercept(grads, trainable_variables=None):
        variables = updated_variables(optimizer) if trainable_variables is None else list(trainable_variables)
        if not optimizer.built:
            with keras.name_scope(optimizer.name):
                optimizer.build(variables)
        known = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if not known:
            original(grads, variables)  # lets Keras say that there are no gradients
        kept = [v for _, v in known]

        def apply_gradients(gradients):
            by_variable = {id(v): g for v, g in zip(kept, gradients, strict=True)}
            original([by_variable.get(id(v)) for v in variables], variables)

        receive([g for g, _ in known], kept, apply_gradients)

    with replaced(optimizer, "apply", intercept):
        yield


class OptimizerHook:
    """Send summed gradients through a pipeline into an optimizer's own update, whatever kind of optimizer it is.

    Args:
        optimizer: The optimizer.
        pipeline: What measures, decides, clips and records.
        key: Names the optimizer among those of the model.
        model: The model whose weights it updates, if there is one.
        sample: Whether samples may be due in the graph that is being built.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        pipeline: Pipeline,
        *,
        key: str = "0",
        model: keras.Model | None = None,
        sample: bool = False,
    ):
        self._optimizer = optimizer
        self._pipeline = pipeline
        self._key = key
        self._model = model
        self._sample = sample

    def send(
        self,
        gradients: list[Any],
        variables: list[Any],
        apply_gradients: Callable[[Any], Any],
        *,
        loss: tf.Tensor | None = None,
        earlier: int = 0,
        alone: bool = True,
        through_another: bool = False,
    ) -> StepResult:
        """Let the pipeline act on the gradients and the optimizer on what becomes of them.

        Args:
            gradients: The gradients, summed over replicas.
            variables: What they belong to.
            apply_gradients: The optimizer's own update.
            loss: float scalar, the loss of the batch, if it is known.
            earlier: Updates of this optimizer before this one in the step. Each is compared with those of other steps
                that had as many: in the train step of a GAN or of sharpness-aware minimization one differs from the
                next.
            alone: Whether no other optimizer applies gradients in the step.
            through_another: Whether `apply_gradients` sends them through a pipeline of the program's own, which
                configures the optimizer.

        Raises:
            ValueError: The optimizer is one with which Keras cannot train under this strategy.
        """
        optimizer, pipeline, settings = self._optimizer, self._pipeline, self._pipeline.settings
        leaves = keras_private.leaves(optimizer)
        replicas.require_no_condition(leaves)
        loss_scale = keras_optimizers.loss_scale(optimizer)
        clips = settings.clipping is not None
        rates = self._rates(leaves)

        def update_weights(transformed: list[Any], scale: tf.Tensor | None = None) -> None:
            late = not through_another and all(self._scales_late(leaf, variables) for leaf in leaves)
            if scale is not None and not late:
                transformed, scale = PackedTensors(transformed, xla=settings.xla).scaled(scale).unpacked(), None
            with contextlib.ExitStack() as stack:
                for leaf, rate in zip(leaves, rates, strict=True):
                    if not through_another:
                        stack.enter_context(self._configured(leaf, rate, scale))
                    elif rate is not None:
                        stack.enter_context(keras_optimizers.rate_replaced(leaf, rate))
                    if clips and update.accumulation is not None:
                        part = _part_of(leaf, update, variables, alone=len(leaves) == 1)
                        stack.enter_context(clipped_first(leaf, functools.partial(pipeline.clipper.clip, part)))
                apply_gradients(transformed)

        update = Update(
            gradients,
            update_weights,
            accumulation=_accumulation(leaves, gradients, variables, loss_scale),
            loss=loss,
            loss_scale=loss_scale,
            bounded_elsewhere=all(leaf.clipvalue is not None for leaf in leaves),
            lower_scale=keras_optimizers.lower_scale(optimizer),
            weights=functools.partial(_read, variables),
            assigned_where=None
            if tf.distribute.has_strategy()
            else functools.partial(_assigned_where, optimizer, leaves, variables),
            unit_axes=self._unit_axes(variables),
            optimizer_key=f"{self._key}_{earlier}" if earlier else self._key,
            alone=alone and not earlier,
            variables=variables,
            optimizers=[optimizer, *leaves],
            as_written=not through_another and all(map(runs_as_written, leaves)),
        )
        return pipeline.apply(update, sample=self._sample)

    def _rates(self, leaves: list[keras.optimizers.Optimizer]) -> list[tf.Tensor | None]:
        caps = [self._pipeline.rate_cap(f"{self._key}/{index}") for index in range(len(leaves))]
        if not self._pipeline.settings.skip:
            return [None] * len(leaves)
        return [keras_optimizers.capped_rate(leaf, cap) for leaf, cap in zip(leaves, caps, strict=True)]

    def _scales_late(self, leaf: keras.optimizers.Optimizer, variables: list[Any]) -> bool:
        return not tf.distribute.has_strategy() and scales_in_update(leaf, variables)

    def _unit_axes(self, variables: list[Any]) -> list[tuple[int, ...] | None] | None:
        if self._model is None or self._pipeline.settings.clipping is None:
            return None
        from gradrecipes.gradients.clipping.unit_wise import unit_axes

        return unit_axes(self._model, variables)

    @contextlib.contextmanager
    def _configured(
        self, leaf: keras.optimizers.Optimizer, rate: tf.Tensor | None, scale: tf.Tensor | None
    ) -> Iterator[None]:
        settings = self._pipeline.settings
        with contextlib.ExitStack() as stack:
            if rate is not None:
                stack.enter_context(keras_optimizers.rate_replaced(leaf, rate))
            if tf.distribute.has_strategy():
                stack.enter_context(keras_optimizers.already_summed(leaf))
            else:
                stack.enter_context(scalars_read_once(leaf))
                if settings.skip and not settings.xla:
                    stack.enter_context(decayed_as_in_a_graph(leaf))
                if settings.fused:
                    from gradrecipes.compat.keras_optimizers import fused

                    stack.enter_context(fused(leaf, scale, xla=settings.xla))
                else:
                    stack.enter_context(updated_in_sequence(leaf, scale, xla=settings.xla))
            yield


@contextlib.contextmanager
def _assigned_where(
    optimizer: keras.optimizers.Optimizer,
    leaves: list[keras.optimizers.Optimizer],
    variables: list[Any],
    condition: tf.Tensor,
) -> Iterator[None]:
    """Let the variables that an update assigns keep their values unless a condition holds.

    XLA makes the choice of a large variable in the pass that computes its value, if it stands where the optimizer
    assigns it; behind the update it costs another fifth of a step of 4 layers of 1,024 units. Small variables are
    faster with the choice behind the update, by a fifth of a step of a transformer of 64 columns. So are chosen those
    that something else assigns too, such as a constraint or a moving average.
    """
    assigned = {id(variable_of(variable)): variable for variable in [*variables, *optimizer.variables]}
    before = {key: tf.convert_to_tensor(variable) for key, variable in assigned.items()}
    at_once = {
        key
        for key, variable in assigned.items()
        if variable.shape.num_elements() >= LARGE and getattr(variable, "constraint", None) is None
    }
    chosen: set[int] = set()

    def choosing(assign: Callable[..., None], change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]):
        def assign_where(variable: Any, value: Any) -> None:
            own = variable_of(variable)
            if id(own) not in at_once or isinstance(value, tf.IndexedSlices):
                chosen.discard(id(own))
                assign(variable, value)
                return
            old = tf.convert_to_tensor(own)
            own.assign(tf.where(condition, change(old, tf.cast(value, old.dtype)), before[id(own)]))
            chosen.add(id(own))

        return assign_where

    with contextlib.ExitStack() as stack:
        for leaf in leaves:
            if not is_of_keras(leaf) or leaf.use_ema:
                continue
            for name, change in _CHANGES.items():
                stack.enter_context(replaced(leaf, name, choosing(getattr(leaf, name), change)))
        yield
    for key, variable in assigned.items():
        if key not in chosen:
            variable.assign(tf.where(condition, tf.convert_to_tensor(variable), before[key]))


# By name of the method by which Keras' optimizers assign a variable: its next value.
_CHANGES = {"assign": lambda _, new: new, "assign_add": tf.add, "assign_sub": tf.subtract}


def _accumulation(
    leaves: list[keras.optimizers.Optimizer], gradients: list[Any], variables: list[Any], loss_scale: Any
) -> Accumulation | None:
    if not any(leaf.gradient_accumulation_steps for leaf in leaves):
        return None
    means = functools.partial(keras_optimizers.accumulated, leaves, gradients, variables, loss_scale)
    return Accumulation(means, keras_optimizers.completes_update(leaves, variables))


def _read(variables: list[Any]) -> list[tf.Tensor]:
    return [tf.identity(tf.convert_to_tensor(variable)) for variable in variables]


def _part_of(leaf: keras.optimizers.Optimizer, update: Update, variables: list[Any], *, alone: bool) -> Update:
    """Return the part of an update that one optimizer of several applies; it clips with a memory of its own."""
    if alone:
        return update
    places = keras_optimizers.places_of(leaf, variables)
    return dataclasses.replace(
        update,
        weights=functools.partial(_read, [variables[place] for place in places]),
        unit_axes=None if update.unit_axes is None else [update.unit_axes[place] for place in places],
        optimizer_key=f"{update.optimizer_key}/{leaf.name}",
        variables=[variables[place] for place in places],
        optimizers=[leaf, update.optimizers[0]],
    )
