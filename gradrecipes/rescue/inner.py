"""Edit layers in place, on a copy of a model: those within layers of the user's own, which no graph leads to."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradrecipes.compat.keras_private import frozen_variables, holds_layers, own_variables, replaced, sublayers
from gradrecipes.compat.model_reuse import copied_model
from gradrecipes.rescue import edits
from gradrecipes.training.description.describe import LIMITS, NOISE, regularizing, switched_off, untrained
from gradrecipes.training.description.model_graph import UNKNOWN, activation_of, is_custom, is_weighted
from gradrecipes.training.step.capture import calls_intercepted

_LOG = logging.getLogger(__name__)

GATING = ("sigmoid", "hard_sigmoid")  # beside other activations these are gates, not nonlinearities between layers
NOT_EXCHANGED = (None, "linear", "unknown", "softmax")
TO_TANH = ("relu", "exponential", "linear", "leaky_relu", "elu", "softplus")  # in a recurrent layer these do not bound
MOVING_AVERAGE = 0.9  # momentum of a BatchNormalization whose averages follow within tens of steps
SAFE_EPSILON = 1e-3  # Keras' default in a BatchNormalization
MIN_ENTRIES = 32  # entries of a weight below which its distribution says nothing
UNLIKE_ITS_INITIALIZER = 1e-6  # two-sided Kolmogorov-Smirnov p of a weight against a fresh draw
USUAL_SPREAD = (0.05, 20.0)  # spread of a weight over that of a fresh draw; trained weights stay within
HALF_PRECISION = ("float16", "bfloat16")


def is_graph(model: Any) -> bool:
    """Return whether Keras' own call runs the graph of a model: a subclass may have a call of its own."""
    if not isinstance(model, keras.Model):
        return False
    return isinstance(model, keras.Sequential) or type(model).call.__module__.startswith("keras.")


def is_composite(layer: Any) -> bool:
    """Return whether a layer holds others which only code of the user's leads to, as an RNN around their cell does."""
    if not holds_layers(layer) or is_graph(layer):
        return False
    return any(not type(one).__module__.startswith("keras.") for one in [layer, *sublayers(layer)])


def leaves_within(model: keras.Model, *, everywhere: bool) -> list[tuple[int, keras.layers.Layer]]:
    """Return the layers without layers of their own that stand within composite ones, with their places.

    A place is a position in `sublayers(model)`, which is the same in a copy.

    Args:
        model: The model.
        everywhere: Whether to return those that stand in no composite one, too.
    """
    layers = sublayers(model)
    outer = [model] if everywhere else [layer for layer in layers if is_composite(layer)]
    within = {id(one) for layer in outer for one in sublayers(layer)}
    return [(place, one) for place, one in enumerate(layers) if id(one) in within and not holds_layers(one)]


def exchangeable_activations(model: keras.Model, x: Any, kept: frozenset[str], *, everywhere: bool) -> frozenset[int]:
    """Return the places of the layers within composite ones whose activation stands between two weighted layers.

    A copy of the model is run, since only its code says in which order the layers act.

    Args:
        model: A built model.
        x: A few samples.
        kept: Names of layers whose weights are frozen or pretrained, and belong to their activation.
        everywhere: Whether layers outside of composite ones count, too.
    """
    leaves = leaves_within(model, everywhere=everywhere)
    leaves = [(place, one) for place, one in leaves if one.name not in kept]
    bending = {place: kind for place, one in leaves if (kind := _exchangeable(one)) is not None}
    if not bending:
        return frozenset()
    try:
        behind = _before_a_weighted_layer(model, x)
    except Exception:  # a model that cannot be copied or called: its changes are not offered
        _LOG.debug("The order of the layers could not be read.", exc_info=True)
        return frozenset()
    found = {place: kind for place, kind in bending.items() if place in behind}
    if set(found.values()) - set(GATING):
        found = {place: kind for place, kind in found.items() if kind not in GATING}
    return frozenset(found)


def is_flat(layer: Any) -> bool:
    """Return whether a layer that keeps the shape, or an activation, has no slope anywhere, as a sign or a rounding."""
    function = layer.activation if activation_of(layer) == UNKNOWN else layer
    written = function is not layer or is_custom(layer) or isinstance(layer, keras.layers.Lambda)
    if not written or (function is layer and layer.weights):
        return False
    try:
        shape = layer.output.shape if function is not layer else layer.input.shape
        values, weights = tf.random.stateless_normal([2, 2, *(size or MIN_ENTRIES for size in shape[1:])], (0, 0))
        with tf.GradientTape() as tape:
            tape.watch(values)
            found = function(values)
            total = tf.reduce_sum(tf.cast(found, tf.float32) * weights)
        slope = tape.gradient(total, values)
        return found.shape == values.shape and (slope is None or not np.any(slope))
    except Exception:  # a layer that takes something else
        _LOG.debug("It could not be told whether a layer is flat.", exc_info=True)
        return False


def _exchangeable(layer: keras.layers.Layer) -> str | None:
    """Return the name of an activation that is an attribute of a layer and may be another one, else None."""
    kind = activation_of(layer)
    holds = "activation" in vars(layer) and not type(layer).__name__.endswith("Cell")
    return kind if holds and kind not in NOT_EXCHANGED else None


def _before_a_weighted_layer(model: keras.Model, x: Any) -> set[int]:
    """Return the places of the layers that act before a weighted one, and whose output is none of the model's."""
    made = copied_model(model)
    layers = sublayers(made)
    places = {id(layer): place for place, layer in enumerate(layers)}
    called: list[tuple[keras.layers.Layer, Any]] = []

    def record(layer: Any, call: Any, args: Any, kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        called.append((layer, output))
        return output

    with calls_intercepted([layer for layer in layers if not holds_layers(layer)], record):
        outputs = made(keras.tree.map_structure(keras.ops.convert_to_tensor, x), training=False)
    ends = {id(one) for one in keras.tree.flatten(outputs)}
    last = max((at for at, (layer, _) in enumerate(called) if is_weighted(layer)), default=0)
    return {places[id(layer)] for layer, output in called[:last] if id(output) not in ends}


def edit_within(
    made: Any,
    theirs: Any,
    setup: Any,
    *,
    places: Mapping[int, int],
    activations: frozenset[int],
    kept: frozenset[str],
    seed: int,
) -> None:
    """Edit what stands within a copy of a composite layer, or of a model, as a setup has it.

    Args:
        made: The copy.
        theirs: The user's own.
        setup: The setup wanted.
        places: Of all layers of the user's model, by their ids.
        activations: Places of those whose activation may be exchanged.
        kept: Names of layers whose weights are frozen or pretrained.
        seed: 0 for the user's own weights, another to draw anew what is not kept.
    """
    pairs = [(places[id(old)], one) for old, one in zip(sublayers(theirs), sublayers(made), strict=True)]
    bends = next((activation_of(one) for place, one in pairs if place in activations), None)
    if setup.activation != edits.OWN:
        for place, one in pairs:
            if place in activations:
                one.activation = keras.activations.get(setup.activation)
            elif type(one).__name__.endswith("Cell") and activation_of(one) in TO_TANH:
                one.activation = keras.activations.get("tanh")
        bends = setup.activation if bends else None
    if setup.precision != edits.OWN:
        for one in [made, *sublayers(made)]:
            if getattr(one, "compute_dtype", None) in HALF_PRECISION:
                one.dtype_policy = setup.precision
    fitting = setup.initializers != edits.OWN
    recurrent = {id(one) for cell in [made, *sublayers(made)] if hasattr(cell, "state_size") for one in sublayers(cell)}
    for place, one in pairs if fitting or seed else ():
        if one.name not in kept and not holds_layers(one):
            _draw_anew(one, place, bends, fitting=fitting, seed=seed, recurrent=id(one) in recurrent)


def _draw_anew(
    layer: keras.layers.Layer, place: int, behind: str | None, *, fitting: bool, seed: int, recurrent: bool = False
) -> None:
    """Draw the weights of a layer anew, by its initializers or by fitting ones.

    Args:
        layer: The layer.
        place: Its place in the model, which its seeds follow from.
        behind: The activation that acts on its output where it has none of its own.
        fitting: Whether other initializers take the place of its own.
        seed: Of the draw.
        recurrent: Whether it stands within a recurrent cell, where a square kernel acts on the state.
    """
    for key in [key for key in vars(layer) if key.endswith("_initializer")]:
        weight = getattr(layer, key.removesuffix("_initializer"), None)
        initializer = getattr(layer, key)
        if (
            weight is None
            or not hasattr(weight, "assign")
            or not isinstance(initializer, keras.initializers.Initializer)
        ):
            continue
        config = {key: keras.initializers.serialize(initializer)}
        if fitting:
            own = activation_of(layer)
            edits.with_fitting_initializers(behind if own in (None, "linear") else own)(config)
            if recurrent and key == "kernel_initializer" and weight.shape[0] == weight.shape[-1]:
                config[key] = keras.initializers.serialize(keras.initializers.Orthogonal())
        edits.with_seeds(place, seed)(config)
        drawn = keras.initializers.deserialize(config[key])
        values = drawn(tuple(weight.shape), dtype=weight.dtype)
        if not fitting and "bias" in key and np.ndim(values) == 1:
            continue  # an LSTM sets the forget gate's part itself
        weight.assign(values)
        if fitting:
            setattr(layer, key, drawn)  # so that the lines to paste can name it


def adjust(layer: keras.layers.Layer, setup: Any) -> None:
    """Set what a layer reads anew at each call: dropout, penalties and constraints, added losses, moving averages."""
    for kinds, wanted in ((NOISE, setup.dropout), (LIMITS, setup.regularizers)):
        if wanted != edits.OWN:
            switched_off(layer, kinds)
    if setup.masking != edits.OWN and hasattr(layer, "mask_zero"):
        layer.mask_zero = layer.supports_masking = True
    if setup.added_losses != 1.0 and adds_losses(layer):
        layer.add_loss = functools.partial(_add_weighed, layer, setup.added_losses)
    if setup.moving_averages != edits.OWN and type(layer).__name__ == "BatchNormalization":
        layer.momentum = min(layer.momentum, MOVING_AVERAGE)
        layer.epsilon = max(layer.epsilon, SAFE_EPSILON)


def _add_weighed(layer: keras.layers.Layer, factor: float, loss: Any) -> None:
    type(layer).add_loss(layer, keras.tree.map_structure(lambda one: factor * one, loss))


def adds_losses(layer: Any) -> bool:
    """Return whether the code of a layer of the user's own adds losses."""
    kinds = [kind for kind in type(layer).__mro__ if not kind.__module__.startswith("keras.")]
    codes = [getattr(value, "__code__", None) for kind in kinds for value in vars(kind).values()]
    return any("add_loss" in code.co_names for code in codes if code is not None)


def is_held(layer: keras.layers.Layer, kinds: tuple[str, ...]) -> bool:
    """Return whether a layer is regularized in one of these ways."""
    return any(kind in kinds for kind, *_ in regularizing(layer))


def copy_flags(made: keras.layers.Layer, theirs: keras.layers.Layer) -> None:
    """Freeze in a copy what is frozen in the original, layer by layer: Keras' setter reaches all layers within."""
    for one, other in zip([made, *sublayers(made)], [theirs, *sublayers(theirs)], strict=False):
        if type(one) is not type(other):
            continue
        one._trainable = other._trainable
        for mine, variable in zip(own_variables(one), own_variables(other), strict=False):
            mine.trainable = variable.trainable


def unfreeze(made: keras.Model, names: frozenset[str] | None) -> None:
    """Train frozen layers, and let what holds them be trained.

    Args:
        made: The model.
        names: Of the layers; None for all.
    """

    def opened(layer: keras.layers.Layer) -> bool:
        within = [opened(one) for one in layer._layers]
        wanted = bool(frozen_variables(layer)) and (names is None or layer.name in names)
        if wanted:
            for variable in own_variables(layer):
                variable.trainable = True
        elif any(within) and not layer._trainable:
            for variable in own_variables(layer):
                variable.trainable = False
        layer._trainable = layer._trainable or wanted or any(within)
        return wanted or any(within)

    opened(made)


def named_layers(model: keras.Model, name: str) -> dict[str, keras.layers.Layer]:
    """Return the layers of a model by what leads to them: `tower.stages[0].first` for one within a composite layer.

    Args:
        model: The model.
        name: Of the user's own model, which may stand within this one.
    """
    found: dict[str, keras.layers.Layer] = {}
    pending: list[tuple[str, Any]] = [("model" if model.name == name else "", model)]
    while pending:
        path, layer = pending.pop()
        if path not in found:
            found[path] = layer
            below = [("model" if one.name == name else where, one) for where, one in layers_below(layer, path)]
            pending += reversed(below)
    return found


def layers_below(layer: Any, path: str, *, getter: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield the layers that a layer holds, each with what leads to it.

    Args:
        layer: A model, or a layer.
        path: What leads to the layer.
        getter: What is put behind the path of a graph to get a layer by its name; empty for the name alone.
    """
    if is_graph(layer):
        for one in layer._layers:
            yield (path + getter.format(one.name) if getter else one.name), one
    elif is_composite(layer):
        held = {id(one) for one in layer._layers}
        for key, value in vars(layer).items():
            parts = {key: value}
            if isinstance(value, list | tuple):
                parts = {f"{key}[{place}]": one for place, one in enumerate(value)}
            elif isinstance(value, dict):
                parts = {f"{key}[{one!r}]": part for one, part in value.items()}
            for words, part in parts.items():
                if id(part) in held and not key.startswith("_"):
                    yield f"{path}.{words}", part


def is_trained(layer: keras.layers.Layer) -> bool:
    """Return whether the weights of a frozen layer come from a training, as its biases and averages show, too."""
    return untrained(layer, own_variables(layer)) is False or is_drawn_otherwise(layer)


def is_drawn_otherwise(layer: keras.layers.Layer) -> bool:
    """Return whether a weight is distributed unlike a fresh draw, and not so far off that it is a mistake."""
    from scipy.stats import ks_2samp

    for name in ("kernel", "embeddings"):
        initializer, weight = getattr(layer, f"{name}_initializer", None), getattr(layer, name, None)
        if weight is None or not isinstance(initializer, keras.initializers.Initializer):
            continue
        values = np.asarray(weight, np.float64).ravel()
        if len(values) < MIN_ENTRIES or not np.isfinite(values).all():
            continue
        drawn = _drawn(initializer, weight.shape)
        if drawn is None:
            continue
        ratio = values.std() / max(drawn.std(), np.finfo(np.float32).tiny)
        if (
            USUAL_SPREAD[0] < ratio < USUAL_SPREAD[1]
            and ks_2samp(values, drawn, method="asymp").pvalue < UNLIKE_ITS_INITIALIZER
        ):
            return True
    return False


def _drawn(initializer: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        fresh = type(initializer).from_config(initializer.get_config())
        return np.asarray(fresh(tuple(shape), dtype="float32"), np.float64).ravel()
    except Exception:  # an initializer of the user's own may want what is not known here
        return None


def calls_itself(build: Callable[[], keras.Model], batch: Any) -> bool:
    """Return whether a train step of the user's own passes its input to the model itself, and not to parts of it."""
    if keras.tree.is_nested(batch[0]) or np.asarray(batch[0]).dtype.kind != "f":
        return False
    shape, seen = np.shape(batch[0]), []

    def watched(call: Callable[..., Any], given: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(getattr(given, "shape", None) == shape)
        return call(given, *arguments, **keywords)

    try:
        model = build()
        with replaced(model, "call", functools.partial(watched, model.call)):
            model.train_step(keras.tree.map_structure(keras.ops.convert_to_tensor, batch))
    except Exception:  # a step that runs in a graph only
        _LOG.debug("The train step could not be run by itself.", exc_info=True)
        return False
    return any(seen)
