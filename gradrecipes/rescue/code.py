"""The changes of a rescue as Keras lines, each under a comment that says where it goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import has_own_train_step, sublayers
from gradrecipes.rescue.changes import unusual_settings
from gradrecipes.rescue.edits import BOUND, LEAST_OUTPUT, OWN, Scaling
from gradrecipes.rescue.flaws import Flaws
from gradrecipes.rescue.inner import (
    HALF_PRECISION,
    is_composite,
    is_graph,
    layers_below,
    named_layers,
)
from gradrecipes.rescue.original import Setup
from gradrecipes.rescue.rebuild import IN_FRONT, LOSSES, scaled_rate
from gradrecipes.training.description.describe import regularizing
from gradrecipes.training.description.model_graph import activation_of

IN_LAYERS = {"activation", "initializers", "normalization", "skips", "precision", "dropout", "regularizers", "masking"}
IN_LAYERS |= {"moving_averages"}
SHOWN_LAYERS = 6  # names in one line
SHOWN_COLUMNS = 12  # whose means and scales are written down; more are computed from the data
KERAS_SCHEDULES = frozenset(vars(keras.optimizers.schedules))


def code_of(
    before: Setup,
    after: Setup,
    scaling: Scaling | None = None,
    *,
    arrays: bool = True,
    models: tuple[keras.Model, keras.Model] | None = None,
    flaws: Flaws | None = None,
) -> str:
    """Return what to change in the user's script; empty where nothing differs.

    Args:
        before: The user's setup.
        after: The changed one.
        scaling: Means and scales of the data; None for a setup that scales none.
        arrays: Whether `fit` is given arrays, which it divides into batches itself.
        models: The user's model and the changed one, so that the lines name layers; None for lines on all of them.
        flaws: Of the data; None for a setup that leaves out and fills nothing.

    Example:
        >>> import dataclasses
        >>> setup = Setup(batch_size=32, epochs=5, optimizer="SGD", learning_rate=0.5)
        >>> print(code_of(setup, dataclasses.replace(setup, rate_factor=0.1)))
        # In compile: the optimizer
        - optimizer=keras.optimizers.SGD(learning_rate=0.5)
        + optimizer=keras.optimizers.SGD(learning_rate=0.05)
    """
    changed = {difference.setting for difference in before.diff(after)}
    in_call = models is not None and has_own_train_step(models[0])
    scaling = scaling.under(after.head, after.positive) if scaling and changed & {"inputs", "targets"} else None
    lines = _in_model(changed, before, after, models)
    if scaling is not None:
        lines += _lines_in_call(after, scaling) if in_call else _scaling_lines(after, scaling)
    lines += _in_compile(changed, before, after, None if in_call else scaling)
    lines += _without_flaws(after, flaws) if flaws is not None and changed & {"samples", "gaps"} else []
    return "\n".join([*lines, *_in_data_and_fit(changed, before, after, arrays=arrays)])


def _without_flaws(after: Setup, flaws: Flaws) -> list[str]:
    """Return what leaves out samples, or fills inputs, of arrays that `y` and `x`, or the parts of `x`, are."""
    lines, found = [], [one for one in flaws.x if one]
    if after.gaps != OWN:
        lines += ["# In the inputs, those to predict from too, before fit"]
        lines += [f"+ {line}" for one in found for line in one.lines]
    left = [*(found if after.gaps == OWN else []), *([flaws.y] if flaws.y else [])]
    if after.samples != OWN and left:
        checks = [f"({one.check}).reshape(len({one.name}), -1).all(axis=1)" for one in left]
        names = ["y", *(one.name for one in flaws.x)]
        lines += ["# In the data, before fit", f"+ sound = {' & '.join(checks)}"]
        lines += [f"+ {name} = {name}[sound]" for name in names]
    return lines


def _in_model(
    changed: set[str], before: Setup, after: Setup, models: tuple[keras.Model, keras.Model] | None
) -> list[str]:
    lines: list[str] = []
    if "precision" in changed and (models is None or models[0].compute_dtype in HALF_PRECISION):
        lines += ["# Before the model is built", f'+ keras.config.set_dtype_policy("{after.precision}")']
    by_layer = [] if models is None or not changed & {*IN_LAYERS, "inputs"} else _layer_lines(*models)
    lines += by_layer
    if "initializers" in changed and models is not None and not any("initializer" in line for line in by_layer):
        lines += ["# Leave the weights as the initializers of the layers draw them: assign or load none"]
    changed = changed - IN_LAYERS if by_layer else changed
    if "activation" in changed:
        lines += ["# In every hidden layer", f"+ activation={after.activation!r}"]
    if "initializers" in changed:
        lines += ["# In every layer: kernels by their activation, the rest as Keras has it by default"]
        lines += ['+ kernel_initializer="he_normal"  # relu and its kin; "glorot_uniform" for others']
        lines += ['+ recurrent_initializer="orthogonal", embeddings_initializer="uniform", bias_initializer="zeros"']
    if "skips" in changed:
        lines += ["# Around every hidden layer that keeps the shape"]
        lines += ["+ hidden = keras.layers.Add()([hidden, layer(hidden)])"]
    if "normalization" in changed:
        lines += ["# After every hidden layer, in place of any BatchNormalization"]
        lines += ["+ hidden = keras.layers.LayerNormalization()(hidden)"]
    if "added_losses" in changed:
        lines += ["# Where a layer calls self.add_loss(loss)", f"+ self.add_loss({after.added_losses:.2g} * loss)"]
    if "trainable" in changed:
        lines += ["# Before compile", *_trainable_lines(models)]
    if changed & {"head", "units"}:
        units = after.units or "..."
        lines += ["# The output layer"]
        lines += [f"- keras.layers.Dense({before.units or '...'}, activation={before.head!r})"]
        lines += [f"+ keras.layers.Dense({units}, activation={after.head!r})"]
    if "positive" in changed:
        whole = range(after.units or max(after.positive) + 1)
        parts = [f"outputs[..., {place}:{place + 1}]" for place in whole]
        parts = [
            f"keras.ops.softplus({part}) + {LEAST_OUTPUT:g}" if place in after.positive else part
            for place, part in enumerate(parts)
        ]
        joined = f"keras.ops.concatenate([{', '.join(parts)}], axis=-1)" if len(parts) > 1 else parts[0]
        lines += ["# Behind the output layer, in the functional API", f"+ outputs = {joined}"]
    return lines


def _in_compile(changed: set[str], before: Setup, after: Setup, scaling: Scaling | None) -> list[str]:
    lines: list[str] = []
    if changed & {"optimizer", "learning_rate", "schedule", "rate_factor", "settings", "clipping", "warm_up"}:
        lines += ["# In compile: the optimizer", f"- optimizer={optimizer_line(before)}"]
        lines += [f"+ optimizer={optimizer_line(after)}"]
    if "optimizer_state" in changed:
        lines += ["# Before fit, with a new optimizer", "+ model.compile(...)"]
    if changed & {"loss", "from_logits"}:
        lines += ["# In compile: the loss", f"- loss={_loss(before)}", f"+ loss={_loss(after)}"]
    if "targets" in changed and scaling is not None:
        weights = [scale.loss_weight(after.loss) for _, scale in sorted(scaling.targets.items())]
        where = "" if len(scaling.targets) == 1 else f", for outputs {sorted(scaling.targets)}; 1 for the others"
        lines += [f"# In compile, unless you have weights of your own{where}"]
        lines += [f"+ loss_weights=[{', '.join(f'{weight:.4g}' for weight in weights)}]"]
    if "loss_weights" in changed:
        lines += ["# In compile", "- loss_weights=..."]
    return lines


def _in_data_and_fit(changed: set[str], before: Setup, after: Setup, *, arrays: bool) -> list[str]:
    lines: list[str] = []
    if "order" in changed:
        lines += [
            "# Of a tf.data.Dataset, with all samples in the buffer if they fit; of a PyDataset, shuffle its rows"
        ]
        lines += ["+ dataset = dataset.unbatch().shuffle(10_000, reshuffle_each_iteration=True)"]
        lines += [f"+ dataset = dataset.batch({after.batch_size})"]
    elif "batch_size" in changed:
        if arrays:
            lines += ["# In fit", f"- batch_size={before.batch_size}", f"+ batch_size={after.batch_size}"]
        else:
            lines += [f"# Of the dataset, which has batches of {before.batch_size}"]
            lines += [f"+ dataset = dataset.unbatch().batch({after.batch_size})"]
    if "target_shape" in changed:
        line = "y = y.reshape(-1, 1)" if arrays else "dataset = dataset.map(lambda x, y: (x, y[:, None]))"
        lines += ["# Of the data, before fit", f"+ {line}"]
    if "target_values" in changed:
        line = (
            'y = (y == y.max()).astype("float32")' if arrays else "dataset = dataset.map(lambda x, y: (x, y == HIGHER))"
        )
        lines += ["# Of the data, before fit, of those held back too", f"+ {line}"]
    if "class_weights" in changed:
        shown = ", ".join(f"{label}: {weight:g}" for label, weight in after.class_weights.items())
        lines += ["# In fit", f"+ class_weight={{{shown}}}"]
    if "guard" in changed:
        lines += ["# In fit", "+ callbacks=[gradrecipes.GradientGuard()]"]
    return lines


def _layer_lines(before: keras.Model, after: keras.Model) -> list[str]:
    """Return what changes in which layers: their arguments, their class, what comes behind them."""
    theirs = named_layers(before, before.name)
    groups: dict[tuple[str, str], list[str]] = {}
    for name, layer in named_layers(after, before.name).items():
        if is_graph(layer) or is_composite(layer):
            continue
        behind, _, added = layer.name.rpartition("_")
        old = theirs.get(name)
        if old is None and added == "normalization" and behind in theirs:
            groups.setdefault(("After", "keras.layers.LayerNormalization()"), []).append(behind)
        elif old is None and added == IN_FRONT:
            line = "branch = keras.layers.LayerNormalization()(hidden)"
            groups.setdefault(("In front of what takes, the sums apart,", line), []).append(behind)
        elif old is None and added == "skip" and behind in theirs:
            line = "hidden = keras.layers.Add()([hidden, layer(hidden)])"
            groups.setdefault(("Around, in the functional API,", line), []).append(behind)
        elif old is not None and type(old) is not type(layer):
            shown = f'"{activation_of(layer)}"' if isinstance(layer, keras.layers.Activation) else ""
            line = f"keras.layers.{type(layer).__name__}({shown})"
            groups.setdefault(("In place of", line), []).append(name)
        elif old is not None and (arguments := _changed_arguments(old, layer)):
            groups.setdefault(("In", ", ".join(arguments)), []).append(name)
    lines: list[str] = []
    for (where, line), names in groups.items():
        lines += [f"# {where} {_listed(names)}", f"+ {line}"]
    return lines


def _trainable_lines(models: tuple[keras.Model, keras.Model] | None) -> list[str]:
    """Return what trains the frozen layers, and keeps those frozen that stay so."""
    lines = ["+ model.trainable = True"]
    if models is not None:
        theirs, now = models
        now = next((one for one in sublayers(now) if one.name == theirs.name), now)  # within a scaled model
        lines += [f"+ {where}.trainable = False" for where in _frozen(now, "model")]
    return lines


def _frozen(layer: keras.layers.Layer, where: str) -> Iterator[str]:
    """Yield what leads to the outermost layers within a layer that are frozen."""
    for path, one in layers_below(layer, where, getter='.get_layer("{}")'):
        if not one.trainable and one.weights:
            yield path
        elif one.trainable:
            yield from _frozen(one, path)


def _changed_arguments(before: keras.layers.Layer, after: keras.layers.Layer) -> list[str]:
    found = []
    if activation_of(before) != activation_of(after) and activation_of(after):
        found.append(f"activation={activation_of(after)!r}")
    if before.compute_dtype in HALF_PRECISION and after.compute_dtype not in HALF_PRECISION:
        found.append(f"dtype={after.dtype_policy.name!r}")
    names = ["momentum", "epsilon", "mask_zero", *(attribute for _, attribute, _ in regularizing(before))]
    for name in names:
        old, new = getattr(before, name, None), getattr(after, name, None)
        if old != new and (new is None or isinstance(new, int | float)):
            found.append(f"{name}={new!r}")
    try:
        old, new = before.get_config(), after.get_config()
    except NotImplementedError:  # a layer that no config describes was copied as it is
        return found
    for name in new:
        kind = new[name].get("class_name") if isinstance(new[name], Mapping) else None
        known = name.endswith("_initializer") and hasattr(keras.initializers, str(kind))
        if known and _settings(old.get(name)) != _settings(new[name]):
            found.append(f'{name}="{re.sub("(?<=[a-z])(?=[A-Z])", "_", kind).lower()}"')
    return found


def _settings(initializer: Any) -> Any:
    """Return class and arguments of an initializer, its seed apart."""
    if not isinstance(initializer, Mapping):
        return initializer
    config = {key: value for key, value in initializer.get("config", {}).items() if key != "seed"}
    return initializer.get("class_name"), tuple(sorted(config.items(), key=str))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_LAYERS])
    return shown if len(names) <= SHOWN_LAYERS else f"{shown} and {len(names) - SHOWN_LAYERS} more, to {names[-1]}"


def _lines_in_call(after: Setup, scaling: Scaling) -> list[str]:
    """Return what scales within the call of a model, whose train step knows no other place."""
    lines = []
    if after.inputs != OWN:
        mean, spread = scaling.inputs[0]
        few = len(mean) <= SHOWN_COLUMNS
        words = f"(inputs - {_array(mean)}) / {_array(spread)}" if few else "(inputs - x.mean(axis=0)) / x.std(axis=0)"
        lines += ["# In call, of what it is given; x: the training samples", f"+ inputs = {words}"]
    if after.targets != OWN:
        scale = scaling.targets[0]
        few = len(scale.mean) <= SHOWN_COLUMNS
        words = f"{_array(scale.spread)} + {_array(scale.mean)}" if few else "y.std(axis=0) + y.mean(axis=0)"
        lines += ["# In call, of what it returns; y: the training targets", f"+ return outputs * {words}"]
    return lines


def _array(values: np.ndarray) -> str:
    return _number(values[0]) if len(values) == 1 else f"np.float32({_numbers(values)})"


def _scaling_lines(after: Setup, scaling: Scaling) -> list[str]:
    """Return what goes around the model, between building and compiling it."""
    inputs = scaling.inputs if after.inputs != OWN else (None,) * len(scaling.inputs)
    targets = scaling.targets if after.targets != OWN else {}
    lines = []
    if after.inputs != OWN and not scaling.finite:
        lines += [
            f"# In the data: what is not finite becomes the mean, and what is further off than {BOUND:g} standard"
        ]
        lines += ["# deviations is cut off there"]
    lines += ["# After the model is built, before compile"]
    single = len(scaling.inputs) == 1 and set(targets) <= {0} and all(len(shape) > 0 for shape in scaling.shapes)
    if not single:
        for place, measured in enumerate(inputs):
            if measured is not None:
                lines.append(f"# around input {place}:")
                lines.append(f"+ {_input_layer(measured, f'the training samples of input {place}')}")
        for place, scale in sorted(targets.items()):
            lines += [f"# around output {place}:", f"+ {_output_layer(scale.mean, scale.spread)}"]
        return lines
    parts = [f"keras.Input({tuple(scaling.shapes[0])}, dtype={scaling.dtypes[0]!r})"]
    if inputs[0] is not None:
        layer = _input_layer(inputs[0], "the training samples")
        if layer.startswith("scaling"):
            lines += ["+ scaling = keras.layers.Normalization()", "+ scaling.adapt(x)  # the training samples"]
            layer = "scaling"
        parts.append(layer)
    parts.append("model")
    parts += [_output_layer(scale.mean, scale.spread) for scale in targets.values()]
    return [*lines, f"+ model = keras.Sequential([{', '.join(parts)}])"]


def _input_layer(measured: tuple[np.ndarray, np.ndarray], of: str) -> str:
    mean, spread = measured
    if len(mean) > SHOWN_COLUMNS:
        return f"scaling = keras.layers.Normalization()  # and scaling.adapt on {of}"
    return f"keras.layers.Normalization(mean={_numbers(mean)}, variance={_numbers(spread**2)})"


def _output_layer(mean: np.ndarray, spread: np.ndarray) -> str:
    if len(mean) == 1:
        return f"keras.layers.Rescaling({_number(spread[0])}, {_number(mean[0])})"
    if len(mean) > SHOWN_COLUMNS:
        return "keras.layers.Rescaling(y.std(axis=0), y.mean(axis=0))"
    return f"keras.layers.Rescaling({_numbers(spread)}, {_numbers(mean)})"


def _numbers(values: Any) -> str:
    return f"[{', '.join(map(_number, values))}]"


def _number(value: float) -> str:
    return f"{float(value):.6g}"


def optimizer_line(setup: Setup) -> str:
    """Return the call that makes the optimizer of a setup."""
    rate = setup.learning_rate
    if setup.schedule is not None:
        told = _schedule(setup)
    else:
        told = "..." if rate is None else f"{rate * setup.rate_factor:.6g}"
    if setup.warm_up:
        told = f"gradrecipes.schedules.WarmUp({told}, steps={setup.warm_up})"
    parts = [f"learning_rate={told}"]
    parts += [f"{name}={value!r}" for name, value in unusual_settings(setup).items()]
    if setup.clipping:
        parts.append(f"{setup.clipping[0]}={float(setup.clipping[1]):g}")
    return f"keras.optimizers.{setup.optimizer}({', '.join(parts)})"


def _schedule(setup: Setup) -> str:
    """Return the call that makes the schedule, its rates multiplied."""
    settings = scaled_rate({"config": dict(setup.schedule_settings)}, setup.rate_factor)["config"]
    parts = [f"{name}={_number(one) if isinstance(one, float) else repr(one)}" for name, one in settings.items()]
    if setup.schedule not in KERAS_SCHEDULES and not parts:
        parts = ["..."]  # one without a config
    package = "keras.optimizers.schedules." if setup.schedule in KERAS_SCHEDULES else ""
    return f"{package}{setup.schedule}({', '.join(parts)})"


def _loss(setup: Setup) -> str:
    kind = LOSSES.get(setup.loss)
    return f"keras.losses.{kind.__name__}(from_logits={bool(setup.from_logits)})" if kind else repr(setup.loss)
