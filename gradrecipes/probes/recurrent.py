"""See whether a recurrent layer lets gradients grow or vanish on their way back through time, without training."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.core.trace.probes import RecurrentReading
from gradrecipes.training.recovery.model_state import preserve_state
from gradrecipes.training.trial.recurrence import Recurrence, arriving_sequences, recurrent_layers

SAMPLES = 32  # sequences, each with a random vector of its own
WINDOW = 200  # steps at the end of the sequences that are looked at; of longer ones the growth is extrapolated
GATES = {"LSTMCell": (4, 2), "GRUCell": (3, 2)}  # blocks of the recurrent kernel, and which of them is the candidate's
LARGEST_EXPONENT = 300.0  # power of ten up to which a growth is given as a number


def recurrent(model: keras.Model, x: Any, *, seed: int = 0) -> tuple[RecurrentReading, ...]:
    """Measure by how much a gradient grows or shrinks at each step back through time, in every recurrent layer.

    A random vector at the output of the last step is multiplied by the transposed Jacobians `dh_t / dh_(t-1)` of the
    steps before it, on the sequences that really reach the layer, and made of length 1 again each time: the mean of
    the logarithms of its growth is the largest Lyapunov exponent of the layer. Above 0 gradients explode with the
    length of the sequence, below 0 they vanish.

    Args:
        model: A built model. It is left as it was.
        x: Inputs of a batch, as `model(x)` takes them; the first 32 samples are looked at.
        seed: Fixes the vectors.

    Returns:
        A `RecurrentReading` for each recurrent layer (SimpleRNN, LSTM, GRU, ConvLSTM, RNN of any cell, alone or in
        Bidirectional), empty without one.

    Example:
        >>> net = keras.Sequential([keras.Input((20, 3)), keras.layers.SimpleRNN(8, recurrent_initializer="zeros")])
        >>> found = gr.probes.recurrent(net, np.ones((4, 20, 3), "float32"))
        >>> found[0].steps, found[0].growth_per_step, found[0].reach
        (20, 0.0, 0.0)

    References:
        Pascanu et al. 2013, arXiv 1211.5063; Engelken et al. 2020, arXiv 2006.02427 (Lyapunov spectra of recurrent
        nets).
    """
    layers = recurrent_layers(model)
    if not layers:
        return ()
    batch = keras.tree.map_structure(lambda part: None if part is None else part[:SAMPLES], x)
    with preserve_state(model):
        try:
            arrived = arriving_sequences(model, batch)
        except Exception as error:  # the user's own layers run here, and may fail in any way
            return tuple(_described(layer, note=f"The model could not be called: {error}"[:500]) for layer in layers)
        return tuple(_examined(layer, arrived.get(id(layer)), seed) for layer in layers)


def _examined(layer: keras.layers.RNN, arguments: dict[str, Any] | None, seed: int) -> RecurrentReading:
    if arguments is None:
        return _described(layer, note="The layer was not called, or was called in a graph of its own.")
    try:
        recurrence = Recurrence(
            layer,
            arguments["sequences"],
            window=WINDOW,
            initial_state=arguments["initial_state"],
            mask=arguments["mask"],
        )
        return _described(layer, **_measured(recurrence, seed))
    except Exception as error:  # a cell of the user's own may do what it likes
        return _described(layer, note=f"The layer could not be run step by step: {error}"[:500])


def _measured(recurrence: Recurrence, seed: int) -> dict[str, Any]:
    states = recurrence.states()
    sizes = np.array([_sizes(state) for state in states])  # [steps + 1, 2]: root mean square, largest magnitude
    broken = np.flatnonzero(~np.isfinite(sizes).all(axis=1))
    found: dict[str, Any] = {
        "steps": recurrence.length,
        "window": recurrence.steps,
        "state_growth_per_step": _forward_growth(sizes[: broken[0] if len(broken) else None, 0]),
        "state_rms": _number(sizes[-1, 0]),
        "state_max": _number(sizes[-1, 1]),
    }
    if len(broken):
        step = int(broken[0])
        return {**found, "nonfinite_step": step, "note": f"After {step} steps a state is no finite number any more."}
    if not recurrence.mask.any():
        return {**found, "note": "The mask passes over every step of these sequences."}
    growth = recurrence.backwards(states, seed=seed)
    passed = recurrence.mask.T & np.isfinite(growth)
    taken, counted = int(recurrence.mask.sum()), passed.sum(axis=0)
    total = np.where(passed, growth, 0.0).sum(axis=0)
    exponent = float(total.sum() / counted.sum()) if counted.any() else -math.inf
    reach = float(recurrence.real_steps.mean() * counted.sum() / taken)
    log10 = exponent * reach / math.log(10.0) if counted.any() else -math.inf
    fastest = max((total[counted > 0] / counted[counted > 0]).tolist(), default=-math.inf)
    partly = taken < int(recurrence.real_steps.sum())
    return {
        **found,
        "growth_per_step": _number(math.exp(exponent)),
        "growth_fastest_sample": _number(math.exp(fastest)),
        "reach": reach,
        "log10_growth": _number(log10),
        "growth": _number(10.0 ** min(log10, LARGEST_EXPONENT)),
        "note": f"The growth over {recurrence.length} steps is extrapolated from the last {recurrence.steps}."
        if partly
        else None,
    }


def _sizes(state: list[tf.Tensor]) -> tuple[float, float]:
    values = np.concatenate([np.asarray(tf.cast(part, tf.float32), np.float64).ravel() for part in state])
    return float(np.sqrt(np.mean(np.square(values)))), float(np.abs(values).max())


def _forward_growth(rms: np.ndarray) -> float | None:
    late = rms[len(rms) // 2 :]
    if len(late) < 2 or not (late > 0).all():
        return None
    slope = np.polyfit(np.arange(len(late)), np.log(late), 1)[0]
    return _number(float(np.exp(slope)))


def _described(layer: keras.layers.RNN, **measured: Any) -> RecurrentReading:
    cell = layer.cell
    units = getattr(cell, "units", None) or getattr(cell, "filters", None)
    return RecurrentReading(
        layer=layer.name,
        kind=type(layer).__name__,
        activation=_name(getattr(cell, "activation", None)),
        recurrent_activation=_name(getattr(cell, "recurrent_activation", None)),
        units=int(units) if isinstance(units, int) else None,
        spectral_radius=_spectral_radius(cell),
        **measured,
    )


def _spectral_radius(cell: Any) -> float | None:
    kernel = getattr(cell, "recurrent_kernel", None)
    if kernel is None or len(kernel.shape) != 2:
        return None
    values = np.asarray(tf.convert_to_tensor(kernel), np.float64)
    blocks, candidate = GATES.get(type(cell).__name__, (1, 0))
    values = np.split(values, blocks, axis=1)[candidate] if values.shape[1] % blocks == 0 else values
    if values.shape[0] != values.shape[1] or not np.isfinite(values).all():
        return None
    return float(np.abs(np.linalg.eigvals(values)).max())


def _name(activation: Any) -> str | None:
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
