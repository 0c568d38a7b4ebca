"""From a model and its data, or from what was recorded, to what is wrong: one function that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from gradrecipes.core.trace import Trace
from gradrecipes.report.diagnosis import Diagnosis


def diagnose(
    subject: Any,
    x: Any = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int = 32,
    validation_data: Any = None,
    seed: int = 0,
    steps: int = 100,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Tell what is wrong with a training, where, since when, why, how sure that is, and what to do.

    Of a compiled model and its data everything is measured that can be before the training: the data, the structure,
    the signal on a real batch, and then a short trial of a hundred steps with the model's own optimizer, which goes on
    for four hundred more where these are too few to judge. Where that goes wrong, the same steps are run with one thing
    changed, to see what fixes them. The model is afterwards what it was, to the bit: weights, optimizer, seeds,
    metrics.

    Args:
        subject: A compiled `keras.Model`, or the record of a training: `GradientMonitor().trace`, `Trace.load(path)`.
        x: With a model: what `model.fit` takes: arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator, of
            which the first 25 batches are read.
        y: Targets; None where `x` brings them.
        sample_weight: Weights of the samples, or None.
        class_weight: What the samples of each class weigh, as `fit` takes it, or None.
        batch_size: Samples in a batch of arrays.
        validation_data: `(x, y)`, looked at beside the training data, or None.
        seed: Fixes which batches are tried.
        steps: Training steps of the trial, at least 10; more look further, and take longer.
        epochs: Epochs that you train for, or None. A learning-rate schedule is read over the whole training, and where
            it rises above the rates of the trial, steps are tried at its highest; without them it is read over the
            steps that its own settings name.
        steps_per_epoch: Steps of an epoch, where `x` is a dataset or a generator that is not read to its end.
        tell: Called with a few words at the beginning of each part, for a display of progress.

    Returns:
        The findings, most severe first, with the trace they rest on. A healthy training has none.

    Raises:
        TypeError: Neither a model nor a Trace; or data that are not numeric.
        ValueError: The model is not compiled, or the data are empty or do not belong together.

    Example:
        >>> from gradrecipes.core.trace import Trace
        >>> diagnose(Trace(layers=["dense"])).findings
        ()
    """
    from gradrecipes.diagnosis.engine import find

    if not isinstance(subject, Trace):
        if not _is_model(subject):
            raise TypeError(
                f"diagnose needs a compiled model or a Trace. Received: {_named(subject)}. {_remedy(subject)}"
            )
        from gradrecipes.probes.examine import examine

        trace = examine(
            subject,
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=batch_size,
            validation_data=validation_data,
            seed=seed,
            steps=steps,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            tell=tell,
        )
    elif x is None and y is None:
        trace = subject
    else:
        raise TypeError("A Trace is diagnosed alone. Received: data as well. Pass the model to have them looked at.")
    return Diagnosis(tuple(find(trace)), trace)


def _is_model(subject: Any) -> bool:
    import keras

    return isinstance(subject, keras.Model)


def _named(subject: Any) -> str:
    if isinstance(subject, str | os.PathLike):
        return f"{type(subject).__name__} {str(subject)!r}"
    return "None" if subject is None else f"a {type(subject).__name__}"


def _remedy(subject: Any) -> str:
    if isinstance(subject, str | os.PathLike):
        return f"For a saved trace, pass Trace.load({str(subject)!r})."
    if isinstance(subject, type):
        return f"Pass the model itself, not its class: diagnose({subject.__name__}(...), x, y)."
    if callable(getattr(subject, "call", None)):  # a layer
        return "Build a keras.Model of it and compile that."
    if isinstance(getattr(subject, "trace", None), Trace):
        return "Pass its trace: diagnose(monitor.trace)."
    return (
        "Record one: monitor = gradrecipes.GradientMonitor(); model.fit(x, y, callbacks=[monitor]); "
        "then diagnose(monitor.trace)."
    )
