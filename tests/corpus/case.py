"""What a program of the corpus is: how it is built, what is wrong with it, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

SETS = ("tuning_half", "once_set_aside", "second_tuning_set", "third_tuning_set", "set_aside", "fresh")
BLIND = ("set_aside", "fresh")  # the sets of which only totals are ever shown


@dataclass(frozen=True)
class Program:
    """What a user would hand to `gr.diagnose` and to `model.fit`."""

    model: keras.Model  # compiled
    x: Any  # arrays, tuple or dict of arrays
    y: Any
    batch_size: int = 32
    epochs: int = 5
    validation_data: Any = None


@dataclass(frozen=True)
class Case:
    """One program with what is known about it."""

    name: str
    build: Callable[[], Program]  # failing or healthy; deterministic: calls keras.utils.set_random_seed
    source: str  # public report, paper or documentation it restates: title or number, no sentence copied
    cause: str | None = None  # the code of the root cause; None: healthy
    accepted: tuple[str, ...] = ()  # other codes that a fair expert would accept as first finding
    repaired: Callable[[], Program] | None = None  # the twin: the smallest change that mends it
    needs: str = ""  # e.g. "mixed_float16" if a global setting is involved


def failing(
    name: str,
    build: Callable[..., Program],
    source: str,
    cause: str,
    accepted: tuple[str, ...] = (),
    *,
    needs: str = "",
    **mended: Any,
) -> Case:
    """Return the case of a program that fails; its twin is what the same function builds with other arguments."""
    return Case(name, build, source, cause, accepted, partial(build, **mended), needs)
