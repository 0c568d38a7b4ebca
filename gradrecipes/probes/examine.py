"""Look at a model and its data from all sides before the training: probes, then a short trial, into one record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from gradrecipes.core.trace import Trace
from gradrecipes.probes.data import data_probe
from gradrecipes.probes.signal import signal
from gradrecipes.probes.structure import structure_probe
from gradrecipes.probes.trial import try_out
from gradrecipes.training.describe import describe_run
from gradrecipes.training.keras_private import optimizers_of, sublayers
from gradrecipes.training.replicas import require_supported
from gradrecipes.training.trial import build_on
from gradrecipes.training.trial_data import TrialData, trial_data

Tell = Callable[[str], None]


def examine(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
    validation_data: Any = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> Trace:
    """Return the record of all probes and of a short trial; the model is afterwards what it was, to the bit.

    Args:
        model: A compiled model.
        x: What `model.fit` takes: arrays (nested), a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator.
        y: Targets; None where `x` brings them.
        sample_weight: Weights of the samples, or None.
        batch_size: Samples in a batch of arrays.
        validation_data: `(x, y)` or `(x, y, sample_weight)` to be looked at beside the training data, or None.
        seed: Fixes which batches are tried.
        tell: Called with a few words at the beginning of each part.

    Returns:
        A Trace of the trial, with everything else in its `probes`. What could not be run is told in
        `probes["failure"]`: `stage`, `type` and `message`.

    Raises:
        ValueError: The model is not compiled, or the data are empty or do not belong together.
        TypeError: No model, or data that hold no numbers.
    """
    require_compiled(model)
    tell = tell or (lambda words: None)
    tell("reading the data")
    data = trial_data(x, y, sample_weight=sample_weight, batch_size=batch_size)
    validation = _validation(validation_data, data.batch_size)
    probes: dict[str, Any] = {}
    trace = Trace()
    batch = data.cut(1, seed=seed)[0]
    try:
        build_on(model, batch)
    except Exception as error:
        trace.description = _description(model, data)
        trace.probes = {"data": _read(data, model), "failure": failure("build", error)}
        return trace
    tell("looking at data and structure")
    probes["data"] = _read(data, model)
    if validation is not None:
        probes["validation"] = _read(validation, model)
    probes["structure"] = structure_probe(model)
    tell("sending a signal through the net")
    probes["signal"] = {"before": signal(model, batch)}
    tell("trying a few steps")
    trace = try_out(model, data, probes, seed=seed, tell=tell)
    trace.description = {**_description(model, data), **trace.description, "batch_size": data.batch_size}
    return trace


def require_compiled(model: Any) -> None:
    """Refuse what cannot be trained.

    Raises:
        TypeError: No Keras model.
        ValueError: A model without an optimizer, or spread over devices in a way that is not supported.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"diagnose needs a keras.Model or a gradrecipes.Trace. Received: {type(model).__name__}.")
    if not getattr(model, "compiled", False) or not optimizers_of(model):
        raise ValueError(
            f"The model {model.name!r} is not compiled, so nobody knows how it is to be trained. "
            "Call model.compile(optimizer=..., loss=...) before diagnose."
        )
    require_supported(model.distribute_strategy, "diagnose")


def failure(stage: str, error: Exception) -> dict[str, str]:
    """Return what is kept of an error: where it was raised, its class, and the beginning of its message."""
    message = " ".join(str(error).split())
    return {"stage": stage, "type": type(error).__name__, "message": message[:600]}


def _read(data: TrialData, model: keras.Model) -> dict[str, Any]:
    read = data_probe(data.x, data.y, data.sample_weight, model=model)
    return {**read, "samples": data.samples, "complete": data.complete}


def _validation(given: Any, batch_size: int) -> TrialData | None:
    if given is None:
        return None
    if isinstance(given, tuple | list) and 2 <= len(given) <= 3:
        return trial_data(*given[:2], sample_weight=given[2] if len(given) > 2 else None, batch_size=batch_size)
    return trial_data(given, batch_size=batch_size)


def _description(model: keras.Model, data: TrialData) -> dict[str, Any]:
    layers = sublayers(model)
    described = describe_run(model, layers, names=[layer.name for layer in layers])
    return {**described, "batch_size": data.batch_size}
