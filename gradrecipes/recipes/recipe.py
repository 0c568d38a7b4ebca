"""What a recipe is: settings for compile, fit and build that belong together, with their claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import keras


@dataclass(frozen=True)
class Planned:
    """Something that is made anew each time it is used: a callback holds state, an initializer draws.

    Args:
        make: A class or a function.
        arguments: Its arguments, by name.
    """

    make: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Make one."""
        return self.make(**self.arguments)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.make.__name__}({given})"


@dataclass(frozen=True)
class Recipe:
    """A best practice, ready to use: what it sets at compile, in fit and in a build, and what it claims.

    Recipes are combined with `+`. Two that set the same thing to different values contradict each other and are
    refused.

    Args:
        name: The function in `gradrecipes.recipes` that made it; joined by `" + "` in a combination.
        claim: What it does for a training, in a sentence that a script under `recipes/` asserts.
        references: Where it comes from.
        optimizer: `class_name` of a Keras optimizer (Adam if it is missing) and its arguments.
        planned_callbacks: Callbacks, by the part they play.
        layers: Arguments for layers, such as `kernel_initializer`.
        blocks: Layers to build with, by the part they play, such as `normalization`.
        model: Arguments for `gr.RecipeModel`.
        fit: Arguments for `model.fit`.

    Example:
        >>> from gradrecipes import recipes
        >>> recipe = recipes.monitoring() + recipes.training(max_norm=0.5)
        >>> [type(callback).__name__ for callback in recipe.callbacks()]
        ['GradientMonitor', 'GradientGuard', 'NanProofEarlyStopping']
    """

    name: str
    claim: str
    references: tuple[str, ...] = ()
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    planned_callbacks: Mapping[str, Planned] = field(default_factory=dict)
    layers: Mapping[str, Planned] = field(default_factory=dict)
    blocks: Mapping[str, Planned] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    # -- using it ----------------------------------------------------------------------------------
    def compile_arguments(self) -> dict[str, Any]:
        """Return arguments for `model.compile`: a new optimizer, if the recipe says anything of it."""
        if not self.optimizer:
            return {}
        arguments = dict(self.optimizer)
        kind = getattr(keras.optimizers, arguments.pop("class_name", "Adam"))
        return {"optimizer": kind(**arguments)}

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Return new callbacks for `model.fit`."""
        return [planned() for planned in self.planned_callbacks.values()]

    def fit_arguments(self) -> dict[str, Any]:
        """Return all arguments for `model.fit`, the callbacks among them."""
        return {**self.fit, "callbacks": self.callbacks()}

    def layer_arguments(self) -> dict[str, Any]:
        """Return arguments for one layer, made anew: call it once for each layer."""
        return {name: planned() for name, planned in self.layers.items()}

    def block(self, part: str) -> keras.layers.Layer:
        """Return a new layer that plays a part.

        Raises:
            ValueError: The recipe has nothing for that part.
        """
        if part not in self.blocks:
            choices = ", ".join(map(repr, self.blocks)) or "none"
            raise ValueError(f"The recipe {self.name!r} has these parts: {choices}. Received: part={part!r}.")
        return self.blocks[part]()

    def model_arguments(self) -> dict[str, Any]:
        """Return arguments for `gr.RecipeModel`."""
        return dict(self.model)

    # -- combining and telling -----------------------------------------------------------------------
    def __add__(self, other: Recipe) -> Recipe:
        """Return both recipes in one.

        Raises:
            ValueError: They contradict each other.
        """
        if not isinstance(other, Recipe):
            return NotImplemented
        joined = {part: self._joined(other, part) for part in self._settings()}
        return Recipe(
            name=f"{self.name} + {other.name}",
            claim=f"{self.claim} {other.claim}",
            references=tuple(dict.fromkeys(self.references + other.references)),
            **joined,
        )

    def _joined(self, other: Recipe, part: str) -> dict[str, Any]:
        mine, theirs = getattr(self, part), getattr(other, part)
        for name in mine.keys() & theirs.keys():
            if mine[name] != theirs[name]:
                raise ValueError(
                    f"The recipes {self.name!r} and {other.name!r} contradict each other. Received: {name} = "
                    f"{mine[name]} from the one and {theirs[name]} from the other. Give both the same value, or "
                    "leave one of them out."
                )
        return {**mine, **theirs}

    @classmethod
    def _settings(cls) -> list[str]:
        return [one.name for one in fields(cls) if one.name not in ("name", "claim", "references")]

    def __str__(self) -> str:
        lines = [self.name, f"  {self.claim}"]
        for part in self._settings():
            title = part.removeprefix("planned_")
            lines += [f"  {title}: {name} = {value}" for name, value in getattr(self, part).items()]
        return "\n".join(lines + [f"  see: {reference}" for reference in self.references])
