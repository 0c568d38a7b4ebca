"""Build a user's model again with the edits of a setup: new layers, the user's own weights where they are kept."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from gradrecipes.compat.keras_optimizers import own_schedule
from gradrecipes.compat.keras_private import (
    build_optimizer,
    compile_arguments,
    made_by,
    optimizers_of,
    replaced,
    sublayers,
    unbuilt_copy,
)
from gradrecipes.compat.model_reuse import copied_model
from gradrecipes.rescue import edits, inner
from gradrecipes.rescue.edits import OWN, Scaling, wrapped
from gradrecipes.rescue.original import CLIPS, Original, Setup, optimizer_config, unwrapped
from gradrecipes.schedules import WarmUp
from gradrecipes.training.description.model_graph import activation_of

IN_FRONT = "normalized"  # end of the name of a LayerNormalization in front of residual branches


def rebuild(original: Original, base: Setup, setup: Setup, *, scaling: Scaling, seed: int = 0) -> keras.Model:
    """Return a new, compiled, untrained model; the original is only read.

    With the user's own setup it starts with the state of the user's optimizer, and, with seed 0, with the user's own
    weights. Other seeds draw anew what is neither frozen nor pretrained, by the user's own initializers.

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
        inner.copy_flags(made, original.model)
        _edit_within(made, original.model, original, base, setup, seed)
        for layer in [made, *sublayers(made)]:
            inner.adjust(layer, setup)
    if setup.trainable != OWN:
        inner.unfreeze(made, original.untrained if setup.trainable == "untrained" else None)
        for optimizer in optimizers_of(made):  # one that the model holds has no slots for what was frozen
            if optimizer.built:
                vars(optimizer).update(vars(unbuilt_copy(optimizer)))
    if setup.positive != base.positive:
        made = edits.with_positive_columns(made, setup.positive)
    weights: dict[int, float] = {}
    scaling = scaling.under(setup.head, setup.positive)
    if (setup.inputs, setup.targets) != (OWN, OWN):
        around = wrapped if original.wrappable else edits.scaled_in_call
        made = around(made, scaling, inputs=setup.inputs != OWN, targets=setup.targets != OWN)
        if setup.targets != OWN and original.wrappable:
            weights = {place: scale.loss_weight(setup.loss) for place, scale in scaling.targets.items()}
    compile_as(made, original.model, base, setup, loss_weights=weights)
    if setup == base:
        _keep_optimizer_state(made, original.model)
    return made


def has_optimizer_state(model: keras.Model) -> bool:
    """Return whether the optimizer of a model has seen gradients."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer is not None and optimizer.built and int(unwrapped(optimizer).iterations) > 0


def _keep_optimizer_state(made: keras.Model, model: keras.Model) -> None:
    """Let a copy of the training as it is go on where its optimizer stands."""
    if not has_optimizer_state(model) or not made.built:
        return
    build_optimizer(made)
    theirs, mine = model.optimizer.variables, made.optimizer.variables
    if [tuple(one.shape) for one in theirs] == [tuple(one.shape) for one in mine]:
        for one, other in zip(mine, theirs, strict=True):
            one.assign(other)


def _rebuilt(original: Original, base: Setup, setup: Setup, seed: int) -> keras.Model:
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer, bool]] = []
    places = {id(layer): place for place, layer in enumerate(sublayers(original.model))}
    known: dict[int, keras.layers.Layer] = {}  # a layer of two models stays one layer

    def again(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):  # an operation, which holds no weights
            return type(layer).from_config(layer.get_config())
        if id(layer) not in known:
            if inner.is_graph(layer):
                known[id(layer)] = cloned(layer)
            elif inner.is_composite(layer):
                known[id(layer)] = made = copied_model(layer)
                _edit_within(made, layer, original, base, setup, seed)
                pairs.append((layer, made, True))
            else:
                known[id(layer)], drawn = _layer(layer, original, base, setup, seed=seed, place=places[id(layer)])
                pairs.append((layer, known[id(layer)], drawn))
        return known[id(layer)]

    normalized: dict[tuple[int, int, int], Any] = {}

    def call(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        if setup.normalization == "layer" and not setup.skips and layer.name not in original.sums:
            normalize = functools.partial(_normalized, original=original, known=normalized)
            arguments, keywords = keras.tree.map_structure(normalize, (arguments, keywords))
        return _called(layer, original, setup, arguments, keywords)

    restructured = setup.skips or setup.normalization != OWN

    def cloned(model: Any) -> keras.Model:
        with replaced(model, "compiled", False):  # else the copy is compiled from a config, which may not hold the loss
            if isinstance(model, keras.Sequential) and not restructured:
                made = keras.models.clone_model(model, clone_function=again)
                if not made.built:
                    made.build(model.input_shape)
                return made
            graph = model
            if isinstance(model, keras.Sequential):
                graph = keras.Model(model.inputs, model.outputs, name=model.name)
            return keras.models.clone_model(graph, clone_function=again, call_function=call)

    made = cloned(original.model)
    for layer, clone, drawn in pairs:
        values = layer.get_weights()
        if not drawn and [value.shape for value in values] == [tuple(one.shape) for one in clone.weights]:
            clone.set_weights(values)
        for one in [clone, *sublayers(clone)]:
            inner.adjust(one, setup)
        inner.copy_flags(clone, layer)
    for layer in sublayers(original.model):
        if inner.is_graph(layer) and id(layer) in known:
            known[id(layer)]._trainable = layer.trainable
    return made


def _layer(
    layer: keras.layers.Layer,
    original: Original,
    base: Setup,
    setup: Setup,
    *,
    seed: int,
    place: int,
) -> tuple[keras.layers.Layer, bool]:
    """Return the new layer, and whether its weights stay as they were drawn."""
    name, kind = layer.name, type(layer)
    if kind.__name__ == "BatchNormalization" and setup.normalization == "layer":
        return keras.layers.LayerNormalization(axis=layer.axis, name=name, dtype=layer.dtype_policy), True
    if setup.inputs != OWN and _scales_input(layer):  # what is standardized in front of it must not be scaled again
        return keras.layers.Identity(name=name, dtype=layer.dtype_policy), True
    exchanged = setup.activation != OWN and name in original.activations
    if exchanged and not hasattr(layer, "activation"):
        return keras.layers.Activation(setup.activation, name=name, dtype=layer.dtype_policy), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a lambda in a file; nothing is written here
            config = layer.get_config()
    except NotImplementedError:
        return copied_model(layer), False
    changes = [edits.with_seeds(place, seed)]
    drawn = bool(seed)
    if exchanged:
        changes.insert(0, edits.with_setting("activation", setup.activation))
    if setup.activation != OWN and name in original.recurrent and activation_of(layer) in inner.TO_TANH:
        changes.insert(0, edits.with_setting("activation", "tanh"))
    if (setup.head, setup.units) != (base.head, base.units):
        if name in original.heads and name not in original.kept:
            changes.insert(0, edits.with_setting("activation", setup.head))
            if setup.units != base.units and "units" in config:
                config = {**config, "units": setup.units}
                drawn = True
        elif name in original.tail and "units" not in config and activation_of(layer) not in (None, "linear"):
            return keras.layers.Activation("linear", name=name), True
    if setup.initializers != OWN and name not in original.kept:
        changes.insert(len(changes) - 1, edits.with_fitting_initializers(_next_activation(layer, original, setup)))
        drawn = True
    if setup.precision not in (OWN, base.precision):
        changes.append(edits.with_setting("dtype", setup.precision))
    config = edits.edited(config, *changes)
    own = getattr(layer, "activation", None)
    if isinstance(config.get("activation"), dict) and callable(own):
        config["activation"] = own  # a function of the user's own, which no config names
    try:
        return kind.from_config(config), drawn and name not in original.kept
    except Exception:  # its config does not describe it whole, so it is copied as it is
        return copied_model(layer), False


def _scales_input(layer: keras.layers.Layer) -> bool:
    if not isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
        return False
    made = made_by(layer.input)
    return made is not None and isinstance(made.operation, keras.layers.InputLayer)


def _next_activation(layer: keras.layers.Layer, original: Original, setup: Setup) -> str | None:
    """Return the activation that a kernel is drawn for: the layer's own, or that of a layer behind it."""
    own = activation_of(layer)
    if own not in (None, "linear") or layer.name in original.heads:
        return own
    if setup.activation != OWN:
        return setup.activation
    behind = [activation_of(one) for one in sublayers(original.model) if one.name in original.activations]
    return next((name for name in behind if name), own)


def _called(layer: Any, original: Original, setup: Setup, arguments: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a layer, with a normalization or a skip connection around it where the setup has them."""
    if isinstance(layer, keras.layers.LayerNormalization | keras.layers.Activation):
        keywords = {}  # those of the layer that it stands for: a mask, a training flag
    hidden = layer.name in original.hidden and len(arguments) == 1 and hasattr(arguments[0], "shape")
    if not hidden:
        return layer(*arguments, **keywords)
    given = arguments[0]
    in_front = bool(original.residual) and not setup.skips
    normalized = setup.normalization == "layer" and not original.normalizations and not in_front
    out = layer(given, **keywords)
    if not hasattr(out, "shape"):  # a recurrent layer that returns its states, too
        return out
    if normalized:
        out = keras.layers.LayerNormalization(name=f"{layer.name}_normalization")(out)
    if setup.skips and tuple(out.shape) == tuple(given.shape):
        out = keras.layers.Add(name=f"{layer.name}_skip")([given, out])
    return out


def _normalized(value: Any, *, original: Original, known: dict[tuple[int, int, int], Any]) -> Any:
    """Return a residual sum behind a LayerNormalization, one for all that takes it, and any other value as it is."""
    if original.normalizations or not isinstance(value, keras.KerasTensor) or (made := made_by(value)) is None:
        return value
    if made.operation.name not in original.residual:
        return value
    key = id(made.operation), made.node_index, made.tensor_index
    if key not in known:
        known[key] = keras.layers.LayerNormalization(name=f"{made.operation.name}_{IN_FRONT}")(value)
    return known[key]


def _edit_within(made: Any, theirs: Any, original: Original, base: Setup, setup: Setup, seed: int) -> None:
    inner.edit_within(
        made,
        theirs,
        setup if setup.precision != base.precision else replace(setup, precision=OWN),
        places={id(layer): place for place, layer in enumerate(sublayers(original.model))},
        activations=original.inner,
        kept=original.kept,
        seed=seed,
    )


RATES = ("initial_learning_rate", "end_learning_rate", "warmup_target")  # of Keras' schedules, and `values`
LOSSES = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
}


def compile_as(
    made: keras.Model, original: keras.Model, base: Setup, setup: Setup, *, loss_weights: Mapping[int, float]
) -> None:
    """Compile a model as the original is compiled, but for what the setup changes.

    Args:
        made: The model to compile.
        original: The user's model, whose loss and metrics are used; metrics are copied, for they hold state.
        base: The user's setup.
        setup: The setup wanted.
        loss_weights: By the position of an output, what its loss is multiplied by to be of unit size, where targets
            are scaled within the model; weights of the user's own stay as they are.
    """
    arguments = copied_arguments(original)
    arguments["optimizer"] = optimizer_of(arguments.get("optimizer"), base, setup)
    if (setup.loss, setup.from_logits) != (base.loss, base.from_logits):
        kind = LOSSES.get(setup.loss)
        arguments["loss"] = kind(from_logits=bool(setup.from_logits)) if kind else setup.loss
    if setup.loss_weights != base.loss_weights:
        arguments["loss_weights"] = None
    if loss_weights and arguments.get("loss_weights") is None:
        arguments["loss_weights"] = weights_like(arguments["loss"], made, loss_weights)
    plain = type(made).compile is keras.Model.compile
    made.compile(**arguments) if plain else keras.Model.compile(made, **arguments)
    if made.built:
        build_optimizer(made)  # a file of a model whose optimizer has no slots yet opens with a warning


def weights_like(loss: Any, model: keras.Model, weights: Mapping[int, float]) -> Any:
    """Return weights by the position of an output in the form that Keras wants beside such a loss: a list or a dict."""
    output = getattr(model, "output", None)
    count = 1 if output is None else len(keras.tree.flatten(output))
    values = [weights.get(place, 1.0) for place in range(count)]
    if not isinstance(loss, Mapping):
        return values
    keys = keras.tree.flatten({key: key for key in output}) if isinstance(output, Mapping) else model.output_names
    return {key: value for key, value in zip(keys, values, strict=True) if key in loss}


def copied_arguments(model: keras.Model) -> dict[str, Any]:
    """Return what a model was compiled with, its metrics without their state."""
    arguments = compile_arguments(model) or {}
    for name in ("metrics", "weighted_metrics"):
        arguments[name] = keras.tree.map_structure(_copied_metric, arguments.get(name))
    return arguments


def _copied_metric(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def optimizer_of(given: Any, base: Setup, setup: Setup) -> Any:
    """Return a new optimizer as the setup has it, in the loss scaler that the user's has, if any."""
    given = keras.optimizers.get(copy.deepcopy(given) if isinstance(given, dict) else given)
    inner = unwrapped(given)
    config = optimizer_config(given)
    if setup.optimizer == OWN:
        return type(given).from_config(given.get_config())
    if setup.optimizer != base.optimizer or setup.settings != base.settings:
        config = {"learning_rate": config["learning_rate"], **{clip: config.get(clip) for clip in CLIPS}}
        config |= setup.settings
    if setup.clipping != base.clipping:
        config |= dict.fromkeys(CLIPS)
        if setup.clipping:
            config[setup.clipping[0]] = float(setup.clipping[1])
    rate = config["learning_rate"]
    if (setup.learning_rate, setup.schedule) != (base.learning_rate, base.schedule):
        rate = setup.learning_rate
    own = own_schedule(inner) if isinstance(rate, dict) else None
    config["learning_rate"] = scaled_rate(rate, setup.rate_factor) if own is None else own
    if setup.warm_up:
        config["learning_rate"] = WarmUp(_schedule(config["learning_rate"]), steps=setup.warm_up)
    made_by = type(inner) if setup.optimizer == type(inner).__name__ else getattr(keras.optimizers, setup.optimizer)
    made = made_by.from_config(config)
    if inner is not given and setup.precision in (OWN, base.precision):
        outer = {name: value for name, value in given.get_config().items() if name not in ("inner_optimizer", "name")}
        made = type(given)(made, **{name: outer[name] for name in ("initial_scale", "dynamic_growth_steps")})
    return made


def scaled_rate(rate: Any, factor: float) -> Any:
    """Return a rate, or the config of a schedule, multiplied by a factor."""
    if factor == 1.0 or rate is None:
        return rate
    if not isinstance(rate, dict):
        return float(rate) * factor
    rate = copy.deepcopy(rate)
    for name in RATES:
        if isinstance(rate["config"].get(name), int | float):
            rate["config"][name] *= factor
    if isinstance(rate["config"].get("values"), list | tuple):
        rate["config"]["values"] = [value * factor for value in rate["config"]["values"]]
    return rate


def _schedule(rate: Any) -> Any:
    return keras.optimizers.schedules.deserialize(rate) if isinstance(rate, dict) else rate
