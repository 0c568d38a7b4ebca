"""The six best practices against exploding gradients, each one function that returns a `Recipe`."""

from __future__ import annotations

from gradrecipes.recipes.practices import (
    architecture,
    measured_tuning,
    monitoring,
    regularization,
    training,
    tuning,
    validation,
)
from gradrecipes.recipes.recipe import Planned, Recipe

PRACTICES = (monitoring, validation, tuning, regularization, architecture, training)

__all__ = [
    "PRACTICES",
    "Planned",
    "Recipe",
    "all",
    "architecture",
    "measured_tuning",
    "monitoring",
    "regularization",
    "training",
    "tuning",
    "validation",
]


def all() -> list[Recipe]:
    """Return the six recipes with their defaults, in the order of the practices."""
    return [practice() for practice in PRACTICES]
