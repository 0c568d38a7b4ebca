"""Bound the gradients of some layers or optimizers in one way, those of others in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import keras
import tensorflow as tf

from gradrecipes.core.arguments import shown_names
from gradrecipes.gradients.clipping.method import Clipped, Clipping, SerializableMethod, StepGradients, factor_where
from gradrecipes.gradients.norms import Norms, measure_norms
from gradrecipes.gradients.packing import PackedTensors


class _States(tuple[tf.Variable, ...]):
    """The variables of all methods, and those of each."""

    parts: list[tuple[tf.Variable, ...]]

    def __new__(cls, parts: Sequence[tuple[tf.Variable, ...]]) -> _States:
        states = super().__new__(cls, [variable for part in parts for variable in part])
        states.parts = list(parts)
        return states


@keras.saving.register_keras_serializable(package="gradrecipes")
@dataclass(frozen=True)
class by_layer(SerializableMethod):  # noqa: N801
    """Bound each group of layers, or each optimizer, by a method of its own.

    A mapping given as `clipping` becomes one. What no key matches is left as it is; of several keys that match, the
    first counts. The norm that a method bounds is that of its group alone.

    Args:
        methods: Clipping methods by pattern of the names of layers, as in `{"lstm*": by_norm(1.0), "*":
            by_global_norm(5.0)}`, or by optimizer, where a model has several. A pattern may also match the whole path
            of a variable: `"*/bias"`.

    Raises:
        TypeError: A key is neither a pattern nor an optimizer, or a value is no clipping method.
    """

    methods: Mapping[Any, Clipping]

    def __post_init__(self):
        if not isinstance(self.methods, Mapping) or not self.methods:
            raise TypeError(
                f"`methods` must be a mapping of layer patterns to clipping methods. Received: {self.methods!r}. "
                "As in {'lstm*': gr.clipping.by_norm(1.0), '*': gr.clipping.by_global_norm(5.0)}."
            )
        for key, method in self.methods.items():
            if not isinstance(key, str | keras.optimizers.Optimizer):
                raise TypeError(
                    f"Clipping is chosen by a pattern of layer names or by an optimizer. Received the key: {key!r}. "
                    "'dense_*' stands for dense_1, dense_2 and so on, '*' for all layers."
                )
            if isinstance(method, type | by_layer) or not (hasattr(method, "clip") and hasattr(method, "make_state")):
                raise TypeError(
                    f"Each layer pattern needs a clipping method. Received: {method!r} for {key!r}. "
                    "Take one of gr.clipping, as by_global_norm(1.0); leave out layers that are not to be bounded."
                )

    def get_config(self) -> dict[str, Any]:
        """Return the methods by pattern.

        Raises:
            TypeError: A key is an optimizer, which a file cannot name.
        """
        if optimizers := [key for key in self.methods if not isinstance(key, str)]:
            raise TypeError(
                f"Clipping by optimizer cannot be saved. Received: {optimizers[0]!r}. Name the layers instead, or give "
                "the mapping to a GradientGuard, which is not saved with the model."
            )
        return {"methods": dict(self.methods)}

    def require_matches(self, paths: Sequence[str]) -> None:
        """Refuse a pattern that matches no variable.

        Raises:
            ValueError: With the layers there are.
        """
        for key in self.methods:
            if isinstance(key, str) and paths and not any(_matches(key, path) for path in paths):
                names = list(dict.fromkeys(path.split("/")[-2] for path in paths if "/" in path))
                raise ValueError(
                    "A pattern of `clipping` must match a layer with trainable weights. Received: "
                    f"{key!r}; the layers are {shown_names(names)}."
                )

    def make_state_for(self, paths: Sequence[str], optimizers: Sequence[Any]) -> tuple[tf.Variable, ...]:
        """Return the variables of the methods of these gradients."""
        groups = self._groups(paths, optimizers)
        return _States([method.make_state(len(places)) if places else () for method, places in groups])

    def clip(self, step: StepGradients) -> Clipped:
        """Bound the gradients; see `Clipping.clip`.

        Raises:
            ValueError: It is not known what the gradients belong to.
        """
        if step.paths is None:
            raise ValueError(
                "by_layer needs to know the variables that the gradients belong to. Received: none. Use it in a "
                "GradientGuard, a RecipeModel or a GradientPipeline."
            )
        tensors, whole = list(step.packed.tensors), step.norms
        shares = tf.square(whole.of_each / whole.total)
        after, clipped = [], []
        left_alone = set(range(len(tensors)))
        for (method, places), state in zip(self._groups(step.paths, step.optimizers), step.state.parts, strict=True):  # type: ignore[attr-defined]
            if not places:
                continue
            left_alone -= set(places)
            packed = PackedTensors([tensors[place] for place in places])
            result = method.clip(_part(step, packed, places, state))
            for place, tensor in zip(places, result.scaled().tensors, strict=True):
                tensors[place] = tensor
            after.append(tf.reduce_sum(tf.gather(shares, places)) * tf.square(result.factor))
            clipped.append(result.factor < 1.0)
        if not clipped:
            return Clipped(step.packed, tf.ones(()))
        after += [tf.reduce_sum(tf.gather(shares, sorted(left_alone)))] if left_alone else []
        factor = factor_where(tf.reduce_any(tf.stack(clipped)), tf.sqrt(tf.add_n(after)), whole)
        return Clipped(PackedTensors(tensors), factor)

    def _groups(self, paths: Sequence[str], optimizers: Sequence[Any]) -> list[tuple[Clipping, list[int]]]:
        """Return each method with the places of its gradients."""
        left = list(range(len(paths)))
        groups = []
        for key, method in self.methods.items():
            if isinstance(key, str):
                places = [place for place in left if _matches(key, paths[place])]
            else:
                places = left if any(key is optimizer for optimizer in optimizers) else []
            left = [place for place in left if place not in places]
            groups.append((method, list(places)))
        return groups


def _matches(pattern: str, path: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (path, *path.split("/")[:-1]))


def _part(step: StepGradients, packed: PackedTensors, places: list[int], state: tuple[tf.Variable, ...]) -> Any:
    axes = step.unit_axes

    def weights() -> PackedTensors:
        tensors = step.weights().tensors if step.weights is not None else []
        return PackedTensors([tensors[place] for place in places])

    return StepGradients(
        packed,
        measure_norms(packed) if step.any_norm else _norms_of(step.norms, places),
        step.loss_scale,
        any_norm=step.any_norm,
        state=state,
        learn=step.learn,
        weights=None if step.weights is None else weights,
        unit_axes=None if axes is None else [axes[place] for place in places],
    )


def _norms_of(norms: Norms, places: list[int]) -> Norms:
    of_each = tf.gather(norms.of_each, places)
    largest = tf.reduce_max(of_each)
    largest = tf.where(largest > 0, largest, 1.0)
    return Norms(of_each, largest, tf.sqrt(tf.reduce_sum(tf.square(of_each / largest))), norms.finite)
