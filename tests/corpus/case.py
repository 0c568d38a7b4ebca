"""What a program of the corpus is: how it is built, what is wrong with it, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras


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
