"""A Keras model whose own train step bounds the gradient by its global norm, and trains with a gradient penalty."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_optimizers import require_fusible
from gradrecipes.compat.keras_private import compile_identity, leaves, replaced, same_identity
from gradrecipes.core.arguments import require_flag
from gradrecipes.gradients.clipping import Clipping, as_clipping, by_global_norm
from gradrecipes.gradients.pipeline import Pipeline
from gradrecipes.gradients.update import NO_LOSS, PipelineSettings
from gradrecipes.regularizers import GradientCombination, Penalty
from gradrecipes.training.fit.session import is_attached
from gradrecipes.training.step import replicas
from gradrecipes.training.step.instrumented_step import InstrumentedStep
from gradrecipes.training.step.optimizer_hook import gradients_intercepted
from gradrecipes.training.step.replicas import (
    as_logs,
    first_local_batch,
    is_multi_worker,
    naming_lost_workers,
    require_supported,
)


def require_penalty(penalty: Any, caller: str) -> None:
    """Refuse what is no penalty.

    Raises:
        TypeError: With what came and the choices.
    """
    if penalty is None or (isinstance(penalty, Penalty | GradientCombination) and not isinstance(penalty, type)):
        return
    raise TypeError(
        f"`penalty` of {caller} must be a gradient penalty or None. Received: {penalty!r}. Choose one of: "
        "gr.regularizers.InputGradientPenalty(...), gr.regularizers.R1Penalty(...), "
        "gr.regularizers.WassersteinPenalty(...), gr.regularizers.ParameterGradientPenalty(...). "
        "L1 and L2 are `kernel_regularizer=` of the layers, weight decay is an argument of the optimizer."
    )


@contextlib.contextmanager
def penalized(model: keras.Model, data: Any, penalty: Penalty | GradientCombination | None) -> Iterator[None]:
    """Let the train step that runs within the `with` block train with a penalty.

    Args:
        model: The model.
        data: The batch of the step.
        penalty: What to add to the loss, or how to combine gradients; None for a plain step.

    Raises:
        ValueError: The model's strategy has replicas that take turns.
    """
    if penalty is None:
        yield
        return
    if replicas.spread() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            "A gradient penalty needs a step of one replica. Received: a model under a strategy of several replicas. "
            "Leave `penalty` out, or build the model outside strategy.scope()."
        )
    with contextlib.ExitStack() as stack:
        if isinstance(penalty, Penalty):
            stack.enter_context(replaced(model, "compute_loss", _with_term(model, penalty)))
        else:
            stack.enter_context(
                gradients_intercepted(model.optimizer, functools.partial(_combine, model, data, penalty))
            )
        yield


def _with_term(model: keras.Model, penalty: Penalty) -> Callable[..., Any]:
    compute_loss = model.compute_loss

    @functools.wraps(compute_loss)
    def compute_and_penalize(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        def loss_elsewhere(inputs: Any) -> tf.Tensor:
            return _loss(model, compute_loss, inputs, y, sample_weight)

        loss = compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if not tf.is_tensor(loss):
            return loss  # while shapes are inferred
        return loss + tf.cast(penalty.penalty(model, x, y, loss_elsewhere), loss.dtype)

    return compute_and_penalize


def _combine(model, data, penalty, gradients, variables, apply_gradients) -> None:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    first = [gradients]

    def compute_gradients() -> list[Any]:
        if first:
            return first.pop()
        with tf.GradientTape() as tape:
            loss = model.optimizer.scale_loss(_loss(model, model.compute_loss, x, y, sample_weight))
        return tape.gradient(loss, [variable.value for variable in variables])

    apply_gradients(penalty.gradients(variables, compute_gradients))


def _loss(model: keras.Model, compute_loss: Callable[..., Any], x: Any, y: Any, sample_weight: Any) -> tf.Tensor:
    return compute_loss(x=x, y=y, y_pred=model(x, training=True), sample_weight=sample_weight, training=True)


_MEMORY = "memory_"  # begins the names under which a weights file holds what a clipping method remembers


class RecipeModelMixin:
    """Give a subclassed `keras.Model` the train step of `RecipeModel`.

    List it before `keras.Model`, and pass its arguments by name:

    Args:
        clipping: A method of `gradrecipes.clipping`, or None for no clipping. Defaults to
            `by_global_norm(1.0)`.
        skip_nonfinite: Whether a step with a non-finite loss or gradient is left out whole, as
            `GradientGuard` does it.
        penalty: A gradient penalty of `gradrecipes.regularizers`, or None.
        fused: Whether Adam, AdamW and SGD update the weights through TensorFlow's fused kernels; see `GradientGuard`.

    Raises:
        TypeError: The class has a `train_step` that applies gradients by itself, past the clipping.

    Example:
        >>> class Net(RecipeModelMixin, keras.Model):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.out = keras.layers.Dense(1)
        ...     def call(self, x):
        ...         return self.out(x)
        >>> net = Net(clipping=by_global_norm(0.5))
    """

    def __init__(
        self,
        *args: Any,
        clipping: Clipping | None = by_global_norm(1.0),  # noqa: B008 - frozen
        skip_nonfinite: bool = False,
        penalty: Penalty | GradientCombination | None = None,
        fused: bool = False,
        **kwargs: Any,
    ):
        _require_no_step_past(type(self))
        clipping, penalty = (
            # A saved config; another mapping is one of methods.
            keras.saving.deserialize_keras_object(part) if isinstance(part, dict) and "class_name" in part else part
            for part in (clipping, penalty)
        )
        clipping = as_clipping(clipping, type(self).__name__)
        require_penalty(penalty, type(self).__name__)
        require_flag("skip_nonfinite", skip_nonfinite, remedy="True leaves such a step out whole.")
        require_flag("fused", fused, remedy="True updates the weights through TensorFlow's fused kernels.")
        super().__init__(*args, **kwargs)
        self.clipping = clipping
        self.penalty = penalty
        self.skip_nonfinite = skip_nonfinite
        self.fused = fused

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, as `keras.Model.fit` does; the loss of another worker is told in plain words."""
        with naming_lost_workers(self):
            return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch, as `keras.Model.train_on_batch` does; the loss of a step that is skipped is NaN.

        Keras 3.7 does not reset the metrics before it: there the loss is that of the steps since `reset_metrics`.
        """
        self._report_unknown_loss_as(math.nan)
        try:
            return super().train_on_batch(*args, **kwargs)
        finally:
            self._report_unknown_loss_as(NO_LOSS)

    def _report_unknown_loss_as(self, value: float) -> None:
        self.__dict__["_unknown_loss"] = value
        if self._own_step is not None:
            self._own_step.pipeline.last_loss.assign(value)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Run one step: forward, backward, measure, decide, clip, apply.

        In `fit`, the loss of an epoch in which no step was applied yet is the largest float32, which no callback takes
        for the best; `train_on_batch` gives NaN for it.

        With a `GradientMonitor` or `GradientGuard` in the fit, their pipeline does this in the same order;
        a guard's own clipping takes the place of the model's.

        Returns:
            The logs of `keras.Model.train_step`, and `gradient_norm`, `gradient_norm_max` (mean and largest before
            clipping, since the metrics were reset), `clipped_steps`, `skipped_steps` where they apply. `train_on_batch`
            returns them too, after those of `metrics_names`, by the alphabet; ask it for `return_dict=True`.
        """
        if is_attached(self):
            return self._penalized_step(data)
        require_supported(self.distribute_strategy, type(self).__name__)
        if self.fused:
            for leaf in leaves(self.optimizer):
                require_fusible(leaf, type(self).__name__)
        identity = compile_identity(self)
        if self._own_step is None or not same_identity(identity, self._own_identity):
            settings = PipelineSettings(
                clipping=self.clipping, skip=self.skip_nonfinite, xla=bool(self.jit_compile), fused=self.fused
            )
            self.__dict__["_own_identity"] = identity
            pipeline = Pipeline(settings)
            with tf.init_scope():
                pipeline.last_loss.assign(self._unknown_loss)
            pipeline.restore(self._memory)
            self.__dict__["_own_step"] = InstrumentedStep(self, self._penalized_step, pipeline, log=True)
        return self._own_step(data)

    def _penalized_step(self, data: Any) -> dict[str, Any]:
        with penalized(self, data, self.penalty):
            return super().train_step(data)

    def reset_metrics(self) -> None:
        """Begin anew with all means, that of the gradient norm too."""
        super().reset_metrics()
        if self._own_step is not None:
            self._own_step.pipeline.epoch_norms.reset()

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate one batch, as `keras.Model.test_step` does."""
        return as_logs(super().test_step(data), self)

    def save_own_variables(self, store: Any) -> None:
        """Save with the model what its clipping method remembers."""
        super().save_own_variables(store)
        remembered = {} if self._own_step is None else self._own_step.pipeline.variables
        for name, variable in remembered.items():
            if name.startswith("clipping_"):
                store[_MEMORY + name.replace("/", ":")] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` saved."""
        values = {name: store[name] for name in store.keys()}  # noqa: SIM118 - a store of Keras is no mapping
        memory = {name: value for name, value in values.items() if name.startswith(_MEMORY)}
        super().load_own_variables({name: value for name, value in values.items() if name not in memory})
        restored = {name.removeprefix(_MEMORY).replace(":", "/"): np.array(value) for name, value in memory.items()}
        self.__dict__["_memory"] = restored
        if self._own_step is not None:
            self._own_step.pipeline.restore(restored)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None and is_multi_worker(self):
            data_batch, iterator = first_local_batch(self.distribute_strategy, iterator), None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    _own_step: InstrumentedStep | None = None
    _unknown_loss: float = NO_LOSS
    _own_identity: tuple[Any, ...] = ()
    _memory: Mapping[str, np.ndarray] = MappingProxyType({})


def _require_no_step_past(kind: type) -> None:
    code = getattr(inspect.unwrap(kind.train_step), "__code__", None)
    names = () if code is None else code.co_names
    if kind.train_step is RecipeModelMixin.train_step or "train_step" in names:
        return
    if {"apply", "apply_gradients"} & set(names):
        raise TypeError(
            f"A model of RecipeModelMixin clips in its own train_step. Received: {kind.__name__}, whose train_step "
            "takes its place and applies gradients by itself, so that nothing would be clipped. Move that train_step "
            f"into a base class and list it after the mixin: class {kind.__name__}(RecipeModelMixin, Base)."
        )


@keras.saving.register_keras_serializable(package="gradrecipes")
class RecipeModel(RecipeModelMixin, keras.Model):
    """Train with gradients bounded by their global norm, measured before and reported at every step.

    A `keras.Model` of the functional kind, `RecipeModel(inputs, outputs)`; for a subclassed model, use
    `RecipeModelMixin`. The bound is right for any finite gradient, under a loss scale and with gradient
    accumulation.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
        clipping: A method of `gradrecipes.clipping`, or None. Defaults to `by_global_norm(1.0)`.
        skip_nonfinite: Whether a step with a non-finite loss or gradient is left out whole.
        penalty: A gradient penalty of `gradrecipes.regularizers`, or None. A term of the loss shows in the logs' loss.
        fused: Whether Adam, AdamW and SGD update the weights through TensorFlow's fused kernels; see `GradientGuard`.

    Example:
        >>> inputs = keras.Input((8,))
        >>> model = RecipeModel(inputs, keras.layers.Dense(1)(inputs), clipping=by_global_norm(0.5))
        >>> model.compile(optimizer="sgd", loss="mse")
    """

    def get_config(self) -> dict[str, Any]:
        """Return the config of the functional model, with the arguments of this class."""
        return {
            **keras.Model(self.inputs, self.outputs, name=self.name, trainable=self.trainable).get_config(),
            "clipping": keras.saving.serialize_keras_object(self.clipping),
            "skip_nonfinite": self.skip_nonfinite,
            "fused": self.fused,
            "penalty": None if self.penalty is None else keras.saving.serialize_keras_object(self.penalty),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> RecipeModel:
        """Make the model from what `get_config` returned."""
        config = dict(config)
        own = {name: config.pop(name) for name in ("clipping", "skip_nonfinite", "penalty", "fused")}
        plain = keras.Model.from_config(config, custom_objects=custom_objects)
        return cls(plain.inputs, plain.outputs, name=plain.name, **own)
