"""Between a train step and an optimizer: gradients are led through a pipeline on their way."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.compat import keras_private
from gradrecipes.compat.keras_private import replaced
from gradrecipes.gradients.packing import PackedTensors
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import StepOutcome, Update
from gradrecipes.training.description.unit_axes import unit_axes
from gradrecipes.training.step import replicas

Handle = Callable[[list[Any], list[Any], Callable[[Any], Any]], None]


@contextlib.contextmanager
def piped(optimizer: keras.optimizers.Optimizer, handle: Handle) -> Iterator[None]:
    """Lead what is applied to an optimizer through `handle(gradients, variables, apply_gradients)`.

    Variables without a gradient are left out; `apply_gradients` takes the gradients of the others.
    """
    apply = optimizer.apply

    @tf.autograph.experimental.do_not_convert  # no Python in it branches on a tensor
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


def apply_through(
    pipeline: Pipeline,
    optimizer: keras.optimizers.Optimizer,
    gradients: list[Any],
    variables: list[Any],
    apply_gradients: Callable[[Any], Any],
    *,
    loss: tf.Tensor | None = None,
    model: keras.Model | None = None,
    owner: str = "0",
    earlier: int = 0,
    alone: bool = True,
    sample: bool = False,
) -> StepOutcome:
    """Lead summed gradients through a pipeline into an optimizer's own update, whatever kind of optimizer it is.

    It is judged by itself, and compared with the updates of other steps that had as many `earlier` ones of this
    optimizer before them: in the train step of a GAN or of sharpness-aware minimization one differs from the next.

    Raises:
        ValueError: The optimizer is one with which Keras cannot train under this strategy.
    """
    leaves = keras_private.leaves(optimizer)
    replicas.require_no_condition(leaves)
    unit = keras_private.loss_scale(optimizer)
    clips = pipeline.settings.clipping is not None

    caps = [pipeline.rate_cap(f"{owner}/{index}") for index in range(len(leaves))]

    def apply_as_told(transformed):
        with contextlib.ExitStack() as stack:
            for leaf, cap in zip(leaves, caps, strict=True):
                stack.enter_context(_told(leaf, pipeline, cap))
                if clips and update.measured is not None:
                    clip = _clip_accumulated(pipeline, leaf, _part_of(leaf, update, variables, alone=len(leaves) == 1))
                    stack.enter_context(replaced(leaf, "_clip_gradients", clip))
            apply_gradients(transformed)

    update = Update(
        gradients,
        apply_as_told,
        measured=keras_private.accumulated(leaves, gradients, variables, unit),
        loss=loss,
        unit=unit,
        bounded_elsewhere=all(leaf.clipvalue is not None for leaf in leaves),
        lower_scale=keras_private.lower_scale(optimizer),
        weights=functools.partial(_read, variables),
        unit_axes=unit_axes(model, variables) if clips and model is not None else None,
        owner=f"{owner}_{earlier}" if earlier else owner,
        alone=alone and not earlier,
        variables=variables,
    )
    return pipeline.apply(update, sample=sample)


@contextlib.contextmanager
def _told(leaf: keras.optimizers.Optimizer, pipeline: Pipeline, cap: tf.Variable) -> Iterator[None]:
    several = tf.distribute.has_strategy()
    with contextlib.ExitStack() as stack:
        if pipeline.settings.skip:
            stack.enter_context(keras_private.rate_capped(leaf, cap))
        if several:
            stack.enter_context(keras_private.already_summed(leaf))
        else:
            stack.enter_context(keras_private.scalars_read_once(leaf))
        yield


def _read(variables: list[Any]) -> PackedTensors:
    return PackedTensors([tf.identity(tf.convert_to_tensor(variable)) for variable in variables])


def _part_of(leaf: keras.optimizers.Optimizer, update: Update, variables: list[Any], *, alone: bool) -> Update:
    """Return the part of an update that one optimizer of several applies; it clips with a memory of its own."""
    if alone:
        return update
    places = keras_private.places_of(leaf, variables)
    return dataclasses.replace(
        update,
        weights=functools.partial(_read, [variables[place] for place in places]),
        unit_axes=None if update.unit_axes is None else [update.unit_axes[place] for place in places],
        owner=f"{update.owner}/{leaf.name}",
    )


def _clip_accumulated(
    pipeline: Pipeline, leaf: keras.optimizers.Optimizer, update: Update
) -> Callable[[list[Any]], list[Any]]:
    clip_as_compiled = leaf._clip_gradients

    def clip(gradients: list[Any]) -> list[Any]:
        return clip_as_compiled(pipeline.clip(update, gradients))

    return clip
