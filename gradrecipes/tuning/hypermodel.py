"""A training as a search wants it: built from settings, with the recipes' callbacks inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner

from gradrecipes.callbacks.gradient_guard import GradientGuard
from gradrecipes.tuning import spaces

Tunable = int | Callable[[Any], int] | None


class RecipeHyperModel(keras_tuner.HyperModel):
    """Make a search out of a `build(hp)`, or of a compiled model as it is, with callbacks that are new for each trial.

    A compiled model is built anew for every trial, with fresh weights and the same optimizer, loss and metrics; its
    learning rate is searched about the one it has, and the clipping of its gradients with a guard that holds it.

    Args:
        build: A function of `hp` that returns a compiled model, or a compiled model.
        batch_size: For `fit`: a number, or a function of `hp`, such as `gr.tuning.spaces.batch_size`. None leaves it to
            what `search` is called with.
        epochs: The same. Under Hyperband the tuner decides.
        callbacks: A function of `hp` that returns callbacks, or a recipe, which has a method `callbacks()`. They are
            made anew for each trial, so that nothing has to survive a copy.
        seed: Of weights and shuffling, the same in every trial, so that trials differ by their settings alone; None
            not to fix it.

    Raises:
        TypeError: `build` is neither a function nor a model; `callbacks` is neither a function nor a recipe.
        ValueError: The model is not compiled.

    Example:
        >>> hypermodel = gr.tuning.RecipeHyperModel(model, batch_size=gr.tuning.spaces.batch_size)
        >>> hp = keras_tuner.HyperParameters()
        >>> hypermodel.declare_hyperparameters(hp)
        >>> sorted(hp.values)
        ['batch_size', 'clipping']
    """

    def __init__(
        self,
        build: Callable[[Any], keras.Model] | keras.Model,
        *,
        batch_size: Tunable = None,
        epochs: Tunable = None,
        callbacks: Any = None,
        seed: int | None = None,
    ):
        if isinstance(build, keras.Model):
            if not getattr(build, "compiled", False) or build.optimizer is None:
                raise ValueError(
                    f"The model {build.name!r} is not compiled, so that a search knows neither its loss nor its "
                    "optimizer. Call model.compile(...) first, or pass a function build(hp)."
                )
        elif not callable(build):
            raise TypeError(f"`build` must be a function of hp or a compiled model. Received: {build!r:.80}.")
        if callbacks is not None and not callable(callbacks) and not hasattr(callbacks, "callbacks"):
            raise TypeError(
                "`callbacks` must be a function of hp that returns a list, or a recipe: they are made anew for each "
                f"trial. Received: {callbacks!r:.80}. For a list, pass `lambda hp: [...]`."
            )
        self.model_or_build = build
        self.batch_size = batch_size
        self.epochs = epochs
        self.callbacks = callbacks
        self.seed = seed
        super().__init__()

    def build(self, hp: Any) -> keras.Model:
        """Return the compiled model of a trial."""
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        if isinstance(self.model_or_build, keras.Model):
            return _built_anew(self.model_or_build, hp)
        return self.model_or_build(hp)

    def declare_hyperparameters(self, hp: Any) -> None:
        """Declare what `fit` chooses, so that it is part of the space from the first trial on."""
        self._of_fit(hp)

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Train, with the batch size, epochs and callbacks of the trial."""
        chosen, callbacks = self._of_fit(hp)
        if "tuner/epochs" in hp.values:  # Hyperband says how long
            chosen.pop("epochs", None)
        return model.fit(*args, **{**kwargs, **chosen, "callbacks": [*callbacks, *kwargs.get("callbacks", [])]})

    def _of_fit(self, hp: Any) -> tuple[dict[str, int], Sequence[keras.callbacks.Callback]]:
        given = {"batch_size": self.batch_size, "epochs": self.epochs}
        chosen = {name: one(hp) if callable(one) else one for name, one in given.items() if one is not None}
        callbacks: list[keras.callbacks.Callback] = []
        if hasattr(self.callbacks, "callbacks"):
            callbacks += self.callbacks.callbacks()
        elif self.callbacks is not None:
            callbacks += self.callbacks(hp)
        if isinstance(self.model_or_build, keras.Model) and not any(isinstance(c, GradientGuard) for c in callbacks):
            clipping = spaces.clipping(hp, among=("none", "global_norm"))
            if clipping is not None:
                callbacks.append(GradientGuard(clipping=clipping, snapshot_every=None))
        return chosen, callbacks


def _built_anew(model: keras.Model, hp: Any) -> keras.Model:
    """Return the same model with fresh weights and a new optimizer at the rate of the trial."""
    copy = keras.models.clone_model(model)
    copy.compile_from_config(model.get_compile_config())
    rate = _rate_of(model)
    if rate is not None:
        copy.optimizer.learning_rate = spaces.learning_rate(hp, lowest=rate / 100, highest=rate * 100)
    return copy


def _rate_of(model: keras.Model) -> float | None:
    """Return the constant learning rate of a model; a schedule is left as it is."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = optimizer.get_config().get("learning_rate")
    return float(rate) if isinstance(rate, int | float) else None
