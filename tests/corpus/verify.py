"""Train the programs of the corpus with plain Keras, to see that the failing ones fail and the others learn.

    python -m tests.corpus.verify tuning_half [another set ...] [name of a case ...]

Prints, for each case and its repaired twin: how the loss begins and ends, the last metric (of validation where there is
validation data; R squared of the fit where the program has no metric), what is not finite, and the seconds it took.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np

from tests.corpus.case import SETS, Case, Program


@dataclass(frozen=True)
class Outcome:
    """What came of a training."""

    start: float = float("nan")  # loss of the first batch
    end: float = float("nan")  # mean loss of the last epoch
    metric: str = ""
    value: float = float("nan")
    error: str = ""
    finite_weights: bool = True
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.error:
            return f"{self.error} ({self.seconds:.0f} s)"
        weights = "" if self.finite_weights else ", weights not finite"
        return (
            f"loss {self.start:.3g} -> {self.end:.3g}, {self.metric} {self.value:.3g}{weights} ({self.seconds:.0f} s)"
        )


class _FirstLoss(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.loss = None

    def on_train_batch_end(self, batch, logs=None):
        if self.loss is None:
            self.loss = float((logs or {}).get("loss", np.nan))


@contextmanager
def surroundings(needs: str) -> Iterator[None]:
    """Set the global dtype policy that a case needs, and set it back."""
    before = keras.config.dtype_policy()
    if needs:
        keras.config.set_dtype_policy(needs)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def train(build: Callable[[], Program], needs: str = "") -> Outcome:
    """Build a program and train it as its user would."""
    began = time.perf_counter()
    first = _FirstLoss()
    with surroundings(needs):
        try:
            program = build()
            history = program.model.fit(
                program.x,
                program.y,
                batch_size=program.batch_size,
                epochs=program.epochs,
                validation_data=program.validation_data,
                callbacks=[first],
                verbose=0,
            ).history
            metric, value = _metric(program, history)
        except Exception as error:  # whatever the user would see
            line = str(error).strip().splitlines()[-1] if str(error).strip() else ""
            return Outcome(error=f"{type(error).__name__}: {line[:90]}", seconds=time.perf_counter() - began)
    return Outcome(
        start=float("nan") if first.loss is None else first.loss,
        end=float(history["loss"][-1]) if "loss" in history else float("nan"),
        metric=metric,
        value=value,
        finite_weights=all(np.isfinite(np.asarray(w, "float64")).all() for w in program.model.get_weights()),
        seconds=time.perf_counter() - began,
    )


def _metric(program: Program, history: dict[str, list]) -> tuple[str, float]:
    named = [key for key in history if key not in ("loss", "val_loss") and not key.endswith("_loss")]
    for key in [key for key in named if key.startswith("val_")] + named:
        return key, float(history[key][-1])
    if program.y is None or isinstance(program.y, dict | list | tuple):
        return "loss", float(history["loss"][-1])
    target = np.asarray(program.y, "float64").reshape(len(program.y), -1)
    predicted = np.asarray(program.model.predict(program.x, verbose=0), "float64").reshape(len(target), -1)
    return "R2", float(1 - ((target - predicted) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum())


def main(arguments: list[str]) -> None:
    """Print the table of the sets and cases named."""
    sets = [name for name in arguments if name in SETS]
    names = set(arguments) - set(sets)
    cases: list[Case] = [case for name in sets for case in importlib.import_module(f"tests.corpus.{name}").CASES]
    for case in cases:
        if names and case.name not in names:
            continue
        print(f"{case.name} [{case.cause or 'healthy'}]\n    itself: {train(case.build, case.needs)}", flush=True)
        if case.repaired is not None:
            print(f"    twin:   {train(case.repaired, case.needs)}", flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    main(sys.argv[1:])
