"""One of the ways of training that a study compares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from gradrecipes.recipes import Recipe

RESERVED = ("x", "y", "validation_data", "validation_split", "sample_weight", "initial_epoch", "verbose")


@dataclass(frozen=True)
class Arm:
    """Say how one way of training differs from the others: by the model, by a recipe, by arguments of `fit`.

    Where nothing but arguments of `build` differ, the study takes a plain dictionary of them instead; where nothing
    but a recipe does, the recipe.

    Args:
        build: Arguments for the study's `build`, by name.
        fit: Arguments for `model.fit`, which go before those of the study. `callbacks` is a function without
            arguments that returns new callbacks, since callbacks hold the state of a run.
        recipe: A recipe. Its callbacks and fit arguments are used; `build` gets it as `recipe` if it takes such an
            argument. It has to if the recipe says anything of the optimizer, layers, blocks or the model.

    Raises:
        ValueError: A fit argument that the study sets itself.
        TypeError: Callbacks that were made already.

    Example:
        >>> Arm(build={"learning_rate": 0.1}, fit={"batch_size": 16}).build["learning_rate"]
        0.1
    """

    build: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    def __post_init__(self):
        check_fit(self.fit)

    @classmethod
    def of(cls, given: Any) -> Arm:
        """Return the arm that was given as an arm, as arguments of `build`, or as a recipe.

        Raises:
            TypeError: It is none of them.
        """
        if isinstance(given, Arm):
            return given
        if isinstance(given, Mapping):
            return cls(build=given)
        if given is not None and hasattr(given, "compile_arguments") and hasattr(given, "fit_arguments"):
            return cls(recipe=given)
        raise TypeError(
            "An arm must be a dictionary of arguments for `build`, a recipe of `gr.recipes`, or a `gr.studies.Arm`, "
            f"which may have all of that and arguments for `fit`. Received: {given!r}."
        )

    def model(self, build: Callable[..., keras.Model]) -> keras.Model:
        """Return a new compiled model.

        Raises:
            TypeError: `build` returned no model, or does not take the recipe though it has to.
            ValueError: The model is not compiled.
        """
        arguments = dict(self.build)
        if self.recipe is not None and _takes_recipe(build):
            arguments["recipe"] = self.recipe
        elif self.recipe is not None and (ignored := _settings_for_build(self.recipe)):
            raise TypeError(
                f"The recipe {self.recipe.name!r} says something of: {', '.join(ignored)}. `build` has to use that, so "
                "it must take an argument `recipe`, for example: def build(recipe): ...; "
                "model.compile(loss=..., **recipe.compile_arguments())."
            )
        model = build(**arguments)
        if not isinstance(model, keras.Model):
            raise TypeError(f"`build` must return a compiled Keras model. Received: {model!r}.")
        if not getattr(model, "compiled", False) or getattr(model, "optimizer", None) is None:
            raise ValueError(
                f"`build` must return a compiled model with an optimizer. Received: {model!r}, which has none. "
                "Call model.compile(optimizer=..., loss=...) before returning it."
            )
        return model

    def fit_arguments(self, study: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments for `fit` with new callbacks: the study's, over them the recipe's, over them the arm's."""
        recipe = {} if self.recipe is None else dict(self.recipe.fit_arguments())
        recipe.pop("validation_split", None)  # the study's own frozen split stands for it
        made = list(recipe.pop("callbacks", []))
        for one in (study, self.fit):
            made += one["callbacks"]() if "callbacks" in one else []
        return {**study, **recipe, **self.fit, "callbacks": made}


def check_fit(arguments: Mapping[str, Any]) -> None:
    """Check that a study can use these arguments of `fit`.

    Raises:
        ValueError: One that the study sets itself.
        TypeError: Callbacks that were made already.
    """
    taken = [name for name in RESERVED if name in arguments]
    if taken:
        raise ValueError(
            f"The study sets these arguments of `fit` itself: {', '.join(RESERVED)}. Received: {', '.join(taken)}. "
            "The data, with their split, are given as `data`."
        )
    callbacks = arguments.get("callbacks")
    if callbacks is not None and (isinstance(callbacks, keras.callbacks.Callback) or not callable(callbacks)):
        raise TypeError(
            "Callbacks hold the state of one run, so `callbacks` must be a function without arguments that returns "
            f"new ones: lambda: [gr.GradientGuard()]. Received: {callbacks!r}."
        )


def _takes_recipe(build: Callable[..., Any]) -> bool:
    parameters = inspect.signature(build).parameters
    return "recipe" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _settings_for_build(recipe: Any) -> list[str]:
    return [part for part in ("optimizer", "layers", "blocks", "model") if getattr(recipe, part, None)]
