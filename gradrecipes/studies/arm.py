"""What a study compares: an arm, what it made of one seed, and the number that decides."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True)
class Run:
    """Hold the result of one training.

    Args:
        arm: Name of the arm.
        seed: The seed.
        history: What `fit` returned: a list of numbers, one an epoch, by name. Logs that are arrays are left out.
        test: What the trained model scored on the test data, by name; empty without test data.
        diverged: Why the run counts as diverged, or None.
        seconds: Wall time, that of building and tracing included.
        reused: Whether a compiled step of an earlier run was used.
        note: Why none was, where one was expected; or an empty text.
    """

    arm: str
    seed: int
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    diverged: str | None = None
    seconds: float = 0.0
    reused: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as strict JSON can hold it: numbers that are not finite as their names."""
        return {**asdict(self), "history": _texts(self.history), "test": _texts(self.test)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """Return the run that `to_dict` wrote.

        Raises:
            TypeError: It is another thing.
        """
        numbers = {name: _numbers(content[name]) for name in ("history", "test")}
        return cls(**{**content, **numbers})


def _texts(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _texts(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_texts(value) for value in values]
    return float(values) if math.isfinite(values) else str(float(values))


def _numbers(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _numbers(value) for name, value in values.items()}
    return [float(value) for value in values] if isinstance(values, list) else float(values)


DIRECTIONS = ("min", "max")
EPOCHS = ("last", "best")
SMALLER_IS_BETTER = ("loss", "error", "crossentropy", "mse", "mae", "mape", "msle", "divergence", "poisson", "hinge")
LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "similarity", "positives_rate")


@dataclass(frozen=True)
class Objective:
    """Say by which number the runs of a study are compared.

    Args:
        name: Key of the logs of `fit`, such as `"val_accuracy"`; with test data also `"test_accuracy"`, measured
            after the training.
        direction: `"min"` or `"max"`.
        epoch: `"last"`, or `"best"` for that of the epochs where it was best, which suits a callback that restores
            the best weights. What validation data chose is too good by a little: judge it by test data.

    Raises:
        ValueError: An unknown direction or epoch.

    Example:
        >>> Objective("val_f1", "max", epoch="best").of({"val_f1": [0.2, 0.7, 0.6]}, {})
        0.7
    """

    name: str
    direction: str
    epoch: str = "last"

    def __post_init__(self):
        for name, choices in (("direction", DIRECTIONS), ("epoch", EPOCHS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of: {', '.join(map(repr, choices))}. Received: {name}="
                    f"{getattr(self, name)!r}."
                )

    @classmethod
    def named(cls, name: str) -> Objective:
        """Return the objective of that name, with the direction that the name tells.

        Raises:
            ValueError: It tells none.
        """
        for direction, parts in zip(DIRECTIONS, (SMALLER_IS_BETTER, LARGER_IS_BETTER), strict=True):
            if any(part in name.lower() for part in parts):
                return cls(name, direction)
        raise ValueError(
            f"Whether more or less of {name!r} is better cannot be told from its name. "
            f'Say so: objective=gr.studies.Objective({name!r}, "min"), or "max".'
        )

    def of(self, history: Mapping[str, Sequence[float]], test: Mapping[str, float]) -> float:
        """Return its value in a run; NaN if no epoch ended.

        Raises:
            KeyError: The run has no such number.
        """
        if self.name in test:
            return float(test[self.name])
        if self.name not in history:
            if not history and not test:
                return math.nan
            raise KeyError(
                f"No run has a {self.name!r}. There are: {', '.join(map(repr, [*history, *test]))}. "
                "Choose one of them as `objective`, or name the metric in `model.compile`."
            )
        values = [float(value) for value in history[self.name]]
        finite = [value for value in values if math.isfinite(value)]
        if self.epoch == "last" or not finite:
            return values[-1] if values else math.nan
        return min(finite) if self.direction == "min" else max(finite)

    def gain(self, one: float, other: float) -> float:
        """Return by how much one value is better than another."""
        return one - other if self.direction == "max" else other - one
