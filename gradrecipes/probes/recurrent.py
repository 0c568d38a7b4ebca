"""See whether a recurrent layer lets gradients grow or vanish on their way back through time, without training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import sublayers
from gradrecipes.compat.tensorflow_private import current_graph
from gradrecipes.core.trace.probes import RecurrentReading
from gradrecipes.training.recovery.model_state import preserves_state
from gradrecipes.training.step.capture import calls_intercepted
from gradrecipes.training.trial import finite
from gradrecipes.training.trial_data import first_samples, named

State = list[Any]


def recurrent_layers(model: keras.Model) -> list[keras.layers.RNN]:
    """Return the recurrent layers within a model, those inside Bidirectional too."""
    return [layer for layer in sublayers(model) if isinstance(layer, keras.layers.RNN)]


def arriving_sequences(model: keras.Model, layers: Sequence[keras.layers.RNN], x: Any) -> dict[int, dict[str, Any]]:
    """Return by the id of each recurrent layer with what arguments a forward pass called it first.

    Layers that the pass does not call, or calls within a graph of its own, are left out. To be used within
    `preserve_state` only.

    Args:
        model: A built model.
        layers: Its recurrent layers.
        x: Inputs of a batch.
    """
    arriving: dict[int, dict[str, Any]] = {}
    graph: list[Any] = []

    def keep_arguments(layer: keras.layers.RNN, call: Any, args: Any, kwargs: Any) -> Any:
        if id(layer) not in arriving and current_graph() is graph[0]:
            arriving[id(layer)] = inspect.signature(call).bind(*args, **kwargs).arguments
        return call(*args, **kwargs)

    def forward(x: Any) -> Any:
        graph.append(current_graph())
        model(x, training=True)  # as in training, where BatchNormalization normalizes by the batch
        wanted = ("sequences", "initial_state", "mask")
        return [{name: arguments.get(name) for name in wanted} for arguments in arriving.values()]

    with calls_intercepted(layers, keep_arguments):
        found = tf.function(forward)(x)
    return dict(zip(arriving, found, strict=True))


class Recurrence:
    """Follow the states of a recurrent layer through a batch of sequences, and vectors back through its Jacobians.

    Noise within the cell (`dropout`, `recurrent_dropout`) is left out. Of long sequences the last steps are taken,
    as if they began there.

    Args:
        layer: A built recurrent layer.
        sequences: Floating `[samples, steps, ...]`, as they reach the layer.
        initial_state: States to begin with; None for the layer's own.
        mask: bool `[samples, steps]`: False where a step is passed over; or None.
        window: Steps at most.

    Attributes:
        length: Steps of the sequences.
        real_steps: int `[samples]`, those that the mask does not pass over.
        mask: bool `[samples, steps]`, of those that were taken, in the order in which the layer takes them.
    """

    def __init__(
        self,
        layer: keras.layers.RNN,
        sequences: Any,
        *,
        window: int,
        initial_state: Any = None,
        mask: Any = None,
    ):
        self._cell = layer.cell
        self._takes_training = "training" in inspect.signature(self._cell.call).parameters
        sequences = tf.cast(tf.convert_to_tensor(sequences), self._cell.compute_dtype)
        mask = np.ones(sequences.shape[:2], bool) if mask is None else np.asarray(keras.tree.flatten(mask)[0], bool)
        if layer.go_backwards:
            sequences, mask = tf.reverse(sequences, [1]), mask[:, ::-1]
        self.length, self.real_steps = mask.shape[1], mask.sum(axis=1)
        end = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1 if mask.any() else self.length
        taken = slice(max(0, end - window), end)  # padding behind the last real step has nothing to tell
        self.mask = mask = mask[:, taken]
        self._inputs = tf.unstack(sequences[:, taken], axis=1)
        self._masks = [tf.constant(column) for column in mask.T]
        self._initial = self._first_state(layer, initial_state)
        self._step = tf.function(self._one_step).get_concrete_function(
            self._inputs[0], self._masks[0], keras.tree.flatten(self._initial)
        )

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return len(self._inputs)

    def states(self) -> list[State]:
        """Return the states before the first step, and after each."""
        found = [keras.tree.flatten(self._initial)]
        for entering, mask in zip(self._inputs, self._masks, strict=True):
            found.append(list(self._step(entering, mask, found[-1])[1]))
        return found

    def backwards(self, states: Sequence[State], *, seed: int) -> np.ndarray:
        """Send a random vector back from the output of the last step, made of length 1 again after each step.

        Args:
            states: What `states` returned.
            seed: Fixes the vectors, one for each sample.

        Returns:
            float64 `[steps, samples]`, ln of the factor by which the vector grew in each step, in the order of the
            steps. One that the mask passes over has 0; one that nothing passed, as where no ReLU was active, and those
            before it, have minus infinity.
        """
        last = self._inputs[-1], self._masks[-1], states[-2]
        output = self._step(*last)[0]
        start = np.random.default_rng(seed).standard_normal(output.shape)
        vectors, _ = _unit([tf.cast(start, output.dtype)])
        vectors, grown = self._pull_output(*last, vectors)
        growth = [grown]
        if self.steps > 1:
            pull = tf.function(self._pull_states).get_concrete_function(*last, vectors)
            for place in range(self.steps - 2, -1, -1):
                vectors, grown = pull(self._inputs[place], self._masks[place], states[place], vectors)
                growth.append(grown)
        return np.array(growth[::-1], np.float64)

    def _first_state(self, layer: keras.layers.RNN, given: Any) -> Any:
        if given is None and layer.stateful and layer.states is not None:
            given = keras.tree.map_structure(tf.convert_to_tensor, list(layer.states))
        if given is None:
            given = layer.get_initial_state(len(self.mask))
        given = list(given) if isinstance(given, list | tuple) else [given]
        return keras.tree.map_structure(lambda part: tf.cast(part, self._cell.compute_dtype), given)

    def _one_step(self, entering: tf.Tensor, mask: tf.Tensor, flat: State) -> tuple[tf.Tensor, State]:
        states = keras.tree.pack_sequence_as(self._initial, list(flat))
        noiseless = {"training": False} if self._takes_training else {}
        output, new = self._cell(entering, states, **noiseless)
        _forget_noise(self._cell)
        return output, [_where(mask, now, was) for now, was in zip(keras.tree.flatten(new), flat, strict=True)]

    def _pull_states(self, entering: tf.Tensor, mask: tf.Tensor, flat: State, vectors: State) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(flat)
            new = self._one_step(entering, mask, flat)[1]
        return self._grown(tape.gradient(new, flat, vectors, unconnected_gradients=tf.UnconnectedGradients.ZERO), mask)

    def _pull_output(self, entering: tf.Tensor, mask: tf.Tensor, flat: State, vectors: State) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(flat)
            output = self._one_step(entering, mask, flat)[0]
            if output.shape == flat[0].shape:  # a step that is passed over has no output; the state stands for it
                output = _where(mask, output, flat[0])
        return self._grown(
            tape.gradient(output, flat, vectors[0], unconnected_gradients=tf.UnconnectedGradients.ZERO), mask
        )

    def _grown(self, back: State, mask: tf.Tensor) -> tuple[State, tf.Tensor]:
        back, size = _unit(back)
        return back, tf.where(mask, tf.math.log(size), 0.0)


def _forget_noise(cell: Any) -> None:
    """Take away the masks that a cell of Keras 3.7 makes even where there is no dropout, and keeps: graph tensors."""
    for part in getattr(cell, "cells", [cell]):
        for name in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
            getattr(part, name, lambda: None)()


def _where(mask: tf.Tensor, now: tf.Tensor, was: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.reshape(mask, [-1] + [1] * (len(now.shape) - 1)), now, was)


def _unit(vectors: State) -> tuple[State, tf.Tensor]:
    """Return vectors that are of length 1 together, sample by sample, and the lengths they had."""
    whole = [tf.cast(part, tf.float32) for part in vectors]
    size = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(part), axis=list(range(1, len(part.shape)))) for part in whole]))
    scale = tf.math.divide_no_nan(1.0, size)
    return [
        tf.cast(part * tf.reshape(scale, [-1] + [1] * (len(part.shape) - 1)), vector.dtype)
        for part, vector in zip(whole, vectors, strict=True)
    ], size


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
    batch = first_samples(x, SAMPLES)
    return _examined(model, layers, batch, seed) if layers else ()


@preserves_state
def _examined(
    model: keras.Model, layers: Sequence[keras.layers.RNN], batch: Any, seed: int
) -> tuple[RecurrentReading, ...]:
    try:
        arrived = arriving_sequences(model, layers, batch)
    except Exception as error:  # the user's own layers run here, and may fail in any way
        return tuple(_described(layer, note=f"The model could not be called: {named(error)}") for layer in layers)
    return tuple(_of_layer(layer, arrived.get(id(layer)), seed) for layer in layers)


def _of_layer(layer: keras.layers.RNN, arguments: dict[str, Any] | None, seed: int) -> RecurrentReading:
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
        return _described(layer, note=f"The layer could not be run step by step: {named(error)}")


def _measured(recurrence: Recurrence, seed: int) -> dict[str, Any]:
    states = recurrence.states()
    sizes = np.array([_sizes(state) for state in states])  # [steps + 1, 2]: root mean square, largest magnitude
    broken = np.flatnonzero(~np.isfinite(sizes).all(axis=1))
    found: dict[str, Any] = {
        "steps": recurrence.length,
        "window": recurrence.steps,
        "state_growth_per_step": _forward_growth(sizes[: broken[0] if len(broken) else None, 0]),
        "state_rms": finite(sizes[-1, 0]),
        "state_max": finite(sizes[-1, 1]),
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
        "growth_per_step": finite(math.exp(exponent)),
        "growth_fastest_sample": finite(math.exp(fastest)),
        "reach": reach,
        "log10_growth": finite(log10),
        "growth": finite(10.0 ** min(log10, LARGEST_EXPONENT)),
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
    return finite(float(np.exp(slope)))


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
