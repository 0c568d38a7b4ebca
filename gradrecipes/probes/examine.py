"""Look at a model and its data from all sides: at little cost before a fit, or with a short trial, into one record."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np

from gradrecipes.compat.keras_private import optimizers_of, sublayers
from gradrecipes.compat.random_state import random_numbers_kept
from gradrecipes.core.arguments import require_whole
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import NoiseReading
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import FailureReading, Probes
from gradrecipes.diagnosis.outcome import LEARNING, STALLED, UNKNOWN, Verdict
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.probes.data import read_data
from gradrecipes.probes.loss import loss_probe
from gradrecipes.probes.noise_scale import noise_scale
from gradrecipes.probes.optimizer import nonfinite_slots
from gradrecipes.probes.recurrent import recurrent
from gradrecipes.probes.sharpness import sharpness
from gradrecipes.probes.signal import failure, forward_pass, signal
from gradrecipes.probes.trial import HELD_BACK, try_out
from gradrecipes.training.description.describe import describe_model
from gradrecipes.training.step.replicas import require_supported
from gradrecipes.training.trial import build_error, step_error
from gradrecipes.training.trial_data import TrialData, first_samples, is_arrays, trial_data

HESSIAN_PRODUCTS = 12  # of the sharpness: the largest eigenvalue is known to some percent by then
SMALL_BATCH = 8  # samples up to which the noise of the gradient is asked for
JUDGED_BATCH, NOISE_BATCHES = 32, 10  # samples and batches from which it is told

Tell = Callable[[str], None]


def examine(
    model: keras.Model,
    x: Any,
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
    tell: Tell | None = None,
) -> Trace:
    """Return the record of all probes and of a short trial; the model is afterwards what it was, to the bit.

    For the arguments see `gradrecipes.diagnose`.

    Returns:
        A Trace of the trial, with everything else in its `probes`; `probes.failure` says what could not be run.

    Raises:
        ValueError: The model is not compiled or has nothing to train; the data are empty, do not belong together, or
            their source raised.
        TypeError: No model, or data that are not numeric.
    """
    require_compiled(model)
    _require_plan(seed, steps, epochs, steps_per_epoch)
    if tell is not None and not callable(tell):
        raise TypeError(f"`tell` must be a function of a few words. Received: tell={tell!r}. Try tell=print.")
    tell = tell or (lambda words: None)
    tell("reading the data")
    data = trial_data(x, y, sample_weight=sample_weight, class_weight=class_weight, batch_size=batch_size)
    validation = _validation(validation_data, data)
    batch = data.cut(1, seed=seed)[0]
    planned = _planned_steps(data, epochs, steps_per_epoch)
    error = build_error(model, batch)
    tell("reading data and model")
    description = describe_model(model, batch_size=data.batch_size)
    read, read_validation = (None if part is None else read_data(part, description) for part in (data, validation))
    trains = bool(model.trainable_variables) or any(not layer.built for layer in sublayers(model))
    if error is None and not trains and not description.frozen:
        raise ValueError(
            f"The model {model.name!r} has nothing to train. Received: {len(model.variables)} weights, none of them "
            "made to be trained. Add a layer with weights, such as keras.layers.Dense, then compile again."
        )
    if error is not None or not trains:
        trace = Trace(description=description)
        trace.probes = Probes(data=read, failure=None if error is None else failure("build", error))
        return trace
    attention = AttentionProbe(model)
    probes = _before_training(model, data, description, batch, attention, seed=seed, tell=tell)
    probes = replace(probes, data=read, validation=read_validation)
    tell("training for a few steps")
    how = {"seed": seed, "steps": steps, "planned_steps": planned, "attention": attention, "tell": tell}
    held = () if validation is None else validation.cut(HELD_BACK, seed=seed)
    trace, seen = try_out(model, data, description, probes, validation=held, **how)
    _look_closer(model, data, trace, seen, seed=seed, tell=tell)
    if trace.probes.failure is None and probes.forward_pass.error is not None:
        trace.probes = replace(trace.probes, failure=_failing_batch(model, data, probes.forward_pass.samples))
    return trace


def _require_plan(seed: int, steps: int, epochs: int | None, steps_per_epoch: int | None) -> None:
    require_whole("steps", steps, least=10, remedy="100 are usual.")
    require_whole("seed", seed, least=0, remedy="Another seed draws other batches.")
    for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch)):
        if value is not None:
            require_whole(name, value, least=1, remedy="Pass what you pass to model.fit.")
    if steps_per_epoch is not None and epochs is None:
        raise ValueError(
            f"`steps_per_epoch` needs `epochs` to say how long the training is. Received: "
            f"steps_per_epoch={steps_per_epoch}, epochs=None. Pass epochs=, as to model.fit."
        )


def _before_training(
    model: keras.Model,
    data: TrialData,
    description: Description,
    batch: Any,
    attention: AttentionProbe,
    *,
    seed: int,
    tell: Tell,
) -> Probes:
    """Return what one batch and all data show with the weights as they are."""
    tell("passing one batch through the net")
    probes = Probes(
        nonfinite_slots=nonfinite_slots(model),
        loss=loss_probe(model, batch, description),
        recurrent=recurrent(model, keras.utils.unpack_x_y_sample_weight(batch)[0], seed=seed),
        signal=signal(model, batch, attention=attention),
    )
    tell("passing all the data through the net")
    own = description.own_loss or any(output.custom for output in description.outputs)
    return replace(probes, forward_pass=forward_pass(model, data, by_batch=bool(own)))


def _failing_batch(model: keras.Model, data: TrialData, first: int) -> FailureReading | None:
    """Return the error of a batch that the trial did not meet and that no step can be run on, or None.

    Args:
        model: A model that the trial could train.
        data: All of them.
        first: The first sample of a batch that could not be passed through the net.
    """
    batch = data.take(np.arange(first, min(first + data.batch_size, data.samples)))
    return None if (error := step_error(model, [batch])) is None else failure("step", error)


def _planned_steps(data: TrialData, epochs: int | None, steps_per_epoch: int | None) -> int | None:
    """Return the steps of the training, or None where they are not known: a dataset may go on after what was read."""
    if epochs is None or (steps_per_epoch is None and not data.complete):
        return None
    return epochs * (steps_per_epoch or math.ceil(data.samples / data.batch_size))


def _look_closer(model: keras.Model, data: TrialData, trace: Trace, seen: Verdict, *, seed: int, tell: Tell) -> None:
    """Add what is expensive, and of use only where the trial went wrong: curvature, and noise of small batches."""
    if data.batches is not None or seen.state in (LEARNING, UNKNOWN):
        return
    size = min(data.batch_size, data.samples)
    if seen.state != STALLED:
        tell("measuring the curvature of the loss")
        with contextlib.suppress(TypeError, ValueError):  # a train step of its own kind has no loss to be measured
            measured = sharpness(model, data.x, data.y, batch_size=size, iterations=HESSIAN_PRODUCTS, seed=seed)
            trace.probes = replace(trace.probes, sharpness=measured)
    if size <= SMALL_BATCH and data.samples >= 2 * JUDGED_BATCH:
        tell("measuring the noise of the gradient")
        with contextlib.suppress(TypeError, ValueError):
            found = noise_scale(model, data.x, data.y, batch_size=JUDGED_BATCH, batches=NOISE_BATCHES, seed=seed)
            low, high = found.interval
            trace.probes = replace(trace.probes, noise=NoiseReading(found.noise_scale, low, high, size))


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
            f"The model {model.name!r} is not compiled, so its optimizer and loss are not known. "
            "Call model.compile(optimizer=..., loss=...) before diagnose."
        )
    require_supported(model.distribute_strategy, "diagnose")


def _validation(given: Any, data: TrialData) -> TrialData | None:
    if given is None:
        return None
    try:
        if isinstance(given, tuple | list) and 2 <= len(given) <= 3:
            weights = given[2] if len(given) > 2 else None
            read = trial_data(*given[:2], sample_weight=weights, batch_size=data.batch_size)
        else:
            read = trial_data(given, batch_size=data.batch_size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`validation_data` cannot be used. {error}") from error
    for name in ("x", "y"):
        trained, validated = _sizes(getattr(data, name)), _sizes(getattr(read, name))
        if None not in (trained, validated) and trained != validated:
            raise ValueError(
                f"`validation_data` must fit the model as the data do. Received: {name} with last axes {validated}; "
                f"those of the training data are {trained}. Prepare both in the same way."
            )
    return read


def _sizes(part: Any) -> list[int] | None:
    """Return the last axis of each array, which a layer's weights depend on; lengths and image sizes may differ."""
    if part is None:
        return None
    return [int(array.shape[-1]) if array.ndim > 1 else 1 for array in keras.tree.flatten(part)]


T = TypeVar("T")

logger = logging.getLogger(__name__)

ENTRIES_AT_MOST = 20_000_000  # of an array that are read; of a larger one the first samples
MAX_STEPS, MAX_SHARE = 10, 0.05  # what a look may cost: so many steps of the fit, or this share of them if that is more
PASSES_OF_A_STEP = 3  # one forward, and a backward pass that costs two
PASSES_OF_A_LOOK = PASSES_OF_A_STEP + 2  # signal, attention, outputs; each output's loss may take one more
EAGER_COST = 3  # times a pass of the compiled step: eager, and every output copied; measured on transformers and MLPs


def look_before_fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    attention: AttentionProbe | None = None,
) -> Probes:
    """Return what the probes of data, signal, loss and optimizer see before the first step.

    It never raises and changes nothing: weights, seeds, metrics and everybody's random numbers are afterwards what they
    were. Only arrays are read: a dataset or a generator may draw random numbers, or be used up, by being read.

    It costs at most what ten training steps cost, or a twentieth of the fit where that is more: a model with many
    outputs is looked at on fewer samples. No more data are read than the fit draws.

    Args:
        model: The model that is about to be trained.
        x: What `fit` is given.
        y: Targets, or None.
        sample_weight: Weights of the samples, or None.
        class_weight: What the samples of each class weigh, as `fit` takes it, or None.
        batch_size: Samples in a batch; None for Keras' 32.
        steps: Training steps of the fit, or None where they are not known.
        attention: Reads the attention of the model; None for one of its own. One that is given is traced once.

    Returns:
        The probes; None for what could not be measured.

    Example:
        >>> found = look_before_fit(model, x, y)
        >>> found.data.samples == len(x), found.trial
        (True, None)
    """
    with random_numbers_kept(model, *sublayers(model)):
        description = describe_model(model)
        probes = Probes(nonfinite_slots=_try("optimizer", lambda: nonfinite_slots(model)))
        data = _data(x, y, sample_weight, class_weight, batch_size or 32, steps)
        if data is None:
            return probes
        complete = data.samples == len(keras.tree.flatten(x)[0])
        probes = replace(probes, data=_try("data", lambda: read_data(data, description, complete=complete)))
        if model.distribute_strategy.num_replicas_in_sync > 1:
            return probes
        if not all(layer.built for layer in (model, *sublayers(model))):
            return probes  # a look would draw the initial weights from seeds that are drawn again in the fit
        batch = _affordable(data.cut(1)[0], data.batch_size, len(description.outputs), steps)
        measured = _try("signal", lambda: signal(model, batch, attention=attention or AttentionProbe(model)))
        return replace(probes, signal=measured, loss=_try("loss", lambda: loss_probe(model, batch, description)))


def _try(name: str, measure: Callable[[], T]) -> T | None:
    try:
        return measure()
    except Exception:  # the training is what counts; it is not to end because somebody looked at it
        logger.debug("The probe %r failed before a fit.", name, exc_info=True)
        return None


def _affordable(batch: Any, samples: int, outputs: int, steps: int | None) -> Any:
    """Return as many samples of a batch as can be looked at for what a look may cost."""
    allowed = max(MAX_STEPS, MAX_SHARE * (steps or 0)) * PASSES_OF_A_STEP
    share = allowed / (EAGER_COST * (PASSES_OF_A_LOOK + outputs))
    return batch if share >= 1 else first_samples(batch, max(1, int(share * samples)))


def _data(
    x: Any, y: Any, sample_weight: Any, class_weight: Any, batch_size: int, steps: int | None
) -> TrialData | None:
    try:
        if not is_arrays(x):
            return None
        largest = max(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(x))
        samples = max(1, ENTRIES_AT_MOST // max(1, largest))
        if steps is not None:
            samples = min(samples, max(1, steps * batch_size))
        heads = [None if part is None else first_samples(part, samples) for part in (x, y, sample_weight)]
        return trial_data(*heads[:2], sample_weight=heads[2], class_weight=class_weight, batch_size=batch_size)
    except Exception:
        logger.debug("The data could not be read before a fit.", exc_info=True)
        return None
