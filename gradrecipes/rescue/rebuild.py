"""Build a user's model again with the edits of a setup: new layers, the user's own weights where they are kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import replaced, sublayers
from gradrecipes.compat.model_copy import copied_model
from gradrecipes.rescue import layer_edits as edits
from gradrecipes.rescue.compiling import compile_as
from gradrecipes.rescue.original import Original
from gradrecipes.rescue.scaling import Scaling, wrapped
from gradrecipes.rescue.setup import OWN, Setup
from gradrecipes.training.description.output_head import activation_of

TO_TANH = ("relu", "exponential", "linear", "leaky_relu", "elu", "softplus")  # in a recurrent layer these do not bound


def rebuild(original: Original, base: Setup, setup: Setup, *, scaling: Scaling, seed: int = 0) -> keras.Model:
    """Return a new, compiled, untrained model; the original is only read.

    With the user's own setup and seed 0 it starts with the user's own weights. Other seeds draw anew what is neither
    frozen nor pretrained, by the user's own initializers.

    Args:
        original: The user's model.
        base: The user's setup.
        setup: The setup wanted.
        scaling: Means and scales of the data.
        seed: Of new weights, and of dropout.

    Raises:
        ValueError: The setup asks for an edit that this model does not allow.
    """
    if original.surgical:
        made = _rebuilt(original, base, setup, seed)
    else:
        made = copied_model(original.model)
        if setup.initializers != OWN or seed:
            _draw_anew(made, original, fitting=setup.initializers != OWN, seed=seed)
    weight = 1.0
    if (setup.inputs, setup.targets) != (OWN, OWN):
        made = wrapped(made, scaling, inputs=setup.inputs != OWN, targets=setup.targets != OWN)
        weight = scaling.loss_weight(setup.loss) if setup.targets != OWN else 1.0
    compile_as(made, original.model, base, setup, loss_weight=weight)
    return made


def _rebuilt(original: Original, base: Setup, setup: Setup, seed: int) -> keras.Model:
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer, bool]] = []

    def again(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):  # an operation, which holds no weights
            return type(layer).from_config(layer.get_config())
        made, drawn = _layer(layer, original, base, setup, seed)
        pairs.append((layer, made, drawn))
        return made

    def call(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        return _called(layer, original, setup, arguments, keywords)

    model = original.model
    restructured = setup.skips or setup.normalization != OWN
    with replaced(model, "compiled", False):  # else the copy is compiled from a config, which may not hold the loss
        if isinstance(model, keras.Sequential) and not restructured:
            made = keras.models.clone_model(model, clone_function=again)
            if not made.built:
                made.build(model.input_shape)
        else:
            graph = keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
            made = keras.models.clone_model(graph, clone_function=again, call_function=call)
    for layer, twin, drawn in pairs:
        values = layer.get_weights()
        if not drawn and [value.shape for value in values] == [tuple(one.shape) for one in twin.weights]:
            twin.set_weights(values)
        twin.trainable = layer.trainable
    return made


def _layer(
    layer: keras.layers.Layer, original: Original, base: Setup, setup: Setup, seed: int
) -> tuple[keras.layers.Layer, bool]:
    """Return the new layer, and whether its weights stay as they were drawn."""
    name, kind = layer.name, type(layer)
    if kind.__name__ == "BatchNormalization" and setup.normalization == "layer":
        return keras.layers.LayerNormalization(axis=layer.axis, name=name, dtype=layer.dtype_policy), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a lambda in a file; nothing is written here
            config = layer.get_config()
    except NotImplementedError:
        return copied_model(layer), False
    changes = [edits.with_seeds(name, seed)]
    drawn = bool(seed)
    if setup.activation != OWN and name in original.activations:
        if "activation" not in config:
            return keras.layers.Activation(setup.activation, name=name, dtype=layer.dtype_policy), True
        changes.insert(0, edits.with_activation(setup.activation))
    if setup.activation != OWN and name in original.recurrent and _activation(layer) in TO_TANH:
        changes.insert(0, edits.with_activation("tanh"))
    if (setup.head, setup.units) != (base.head, base.units):
        if name in original.heads and name not in original.kept:
            changes.insert(0, edits.with_activation(setup.head))
            if setup.units != base.units and "units" in config:
                config = {**config, "units": setup.units}
                drawn = True
        elif name in original.tail and "units" not in config and _bends(layer):
            return keras.layers.Activation("linear", name=name), True
    if setup.initializers != OWN and name not in original.kept:
        changes.insert(len(changes) - 1, edits.with_fitting_initializers(_next_activation(layer, original, setup)))
        drawn = True
    if setup.precision not in (OWN, base.precision):
        changes.append(edits.with_dtype(setup.precision))
    config = edits.edited(config, *changes)
    own = getattr(layer, "activation", None)
    if isinstance(config.get("activation"), dict) and callable(own):
        config["activation"] = own  # a function of the user's own, which no config names
    try:
        return kind.from_config(config), drawn and name not in original.kept
    except Exception:  # its config does not describe it whole, so it is copied as it is
        return copied_model(layer), False


def _next_activation(layer: keras.layers.Layer, original: Original, setup: Setup) -> str | None:
    """Return the activation that a kernel is drawn for: the layer's own, or that of a layer behind it."""
    own = _activation(layer)
    if own not in (None, "linear") or layer.name in original.heads:
        return own
    if setup.activation != OWN:
        return setup.activation
    behind = [_activation(one) for one in sublayers(original.model) if one.name in original.activations]
    return next((name for name in behind if name), own)


def _activation(layer: Any) -> str | None:
    return activation_of(layer)


def _bends(layer: Any) -> bool:
    return _activation(layer) not in (None, "linear")


def _called(layer: Any, original: Original, setup: Setup, arguments: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a layer, with a normalization or a skip connection around it where the setup has them."""
    if isinstance(layer, keras.layers.LayerNormalization | keras.layers.Activation):
        keywords = {}  # those of the layer that it stands for: a mask, a training flag
    hidden = layer.name in original.hidden and len(arguments) == 1 and hasattr(arguments[0], "shape")
    if not hidden:
        return layer(*arguments, **keywords)
    given = arguments[0]
    normalized = setup.normalization == "layer" and not original.normalizations
    out = layer(given, **keywords)
    if not hasattr(out, "shape"):  # a recurrent layer that returns its states, too
        return out
    if normalized:
        out = keras.layers.LayerNormalization(name=f"{layer.name}_normalization")(out)
    if setup.skips and tuple(out.shape) == tuple(given.shape):
        out = keras.layers.Add(name=f"{layer.name}_skip")([given, out])
    return out


def _draw_anew(made: keras.Model, original: Original, *, fitting: bool, seed: int) -> None:
    """Draw the weights of a copied model anew, by the initializers of its layers."""
    for layer in sublayers(made):
        if layer.name in original.kept or sublayers(layer):
            continue
        held = getattr(layer, "cell", layer)
        for key in [key for key in vars(held) if key.endswith("_initializer")]:
            weight = getattr(held, key.removesuffix("_initializer"), None)
            initializer = getattr(held, key)
            if weight is None or not hasattr(weight, "assign") or not callable(initializer):
                continue
            if not isinstance(initializer, keras.initializers.Initializer):
                continue
            config = {key: keras.initializers.serialize(initializer)}
            if fitting:
                edits.with_fitting_initializers(_activation(layer))(config)
            edits.with_seeds(weight.path, seed)(config)
            values = keras.initializers.deserialize(config[key])(tuple(weight.shape), dtype=weight.dtype)
            if not fitting and "bias" in key and np.ndim(values) == 1:
                continue  # an LSTM sets the forget gate's part itself
            weight.assign(values)
