"""The user's training as a rescue sees it: the model, read once, and the settings that a change may replace."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_optimizers import config_without_schedule, own_schedule
from gradrecipes.compat.keras_private import compile_arguments, frozen_variables, has_own_train_step, sublayers
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.record import Record
from gradrecipes.rescue.edits import OWN, RECURRENT
from gradrecipes.rescue.inner import (
    HALF_PRECISION,
    MOVING_AVERAGE,
    SAFE_EPSILON,
    adds_losses,
    exchangeable_activations,
    is_drawn_otherwise,
    is_flat,
    is_graph,
    is_held,
    is_trained,
)
from gradrecipes.training.description.describe import LIMITS, NOISE
from gradrecipes.training.description.model_graph import (
    ACTIVATION_LAYERS,
    NORMALIZATIONS,
    ModelGraph,
    activation_of,
    model_graph,
)

MIN_SUMS = 2  # residual sums from which on a net is normalized in front of its branches, as a transformer is
GATES = ("Multiply",)  # an activation that feeds one is a gate, not a nonlinearity between layers


@dataclass(frozen=True, eq=False)
class Original:
    """Hold the user's model and which of its layers play which part.

    Args:
        model: Built and compiled; read only.
        surgical: Whether it is a Sequential or Functional model that Keras can build again layer by layer.
        wrappable: Whether scaling can be put around it.
        hidden: Names of weighted layers that no output comes from directly.
        heads: Names of the weighted layers that the outputs come from.
        tail: Names of the layers between a head and its output.
        activations: Names of the hidden layers whose activation may be exchanged, and of activation layers.
        normalizations: Names of normalization layers.
        recurrent: Names of recurrent layers.
        kept: Names of layers whose weights are frozen or pretrained.
        sums: Names of the sums of a residual net, in which a branch is added to what it starts from.
        residual: Names of these sums and of what their first branch starts from.
        unmasked: Names of layers that look up numbers, and do not mask those that sequences are padded with.
        inner: Places in `sublayers(model)` of the layers within composite ones whose activation may be exchanged.
        untrained: Names of frozen layers whose weights are as their initializers draw them.
        frozen: Whether weights are frozen that were made to be trained.
        drops: Whether a layer drops a share of its inputs.
        penalized: Whether a layer has a regularizer or a constraint.
        adds: Whether a layer of the user's own adds losses.
        averaged: Whether a BatchNormalization has other settings than `inner.adjust` would give it.
        flat: Whether a train step of the user's own meets flat targets with predictions in one column.
        in_call: Whether scaling can be put into the call of a model with a train step of its own.
    """

    model: keras.Model
    surgical: bool
    wrappable: bool
    hidden: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    tail: frozenset[str] = frozenset()
    activations: frozenset[str] = frozenset()
    normalizations: frozenset[str] = frozenset()
    recurrent: frozenset[str] = frozenset()
    kept: frozenset[str] = field(default_factory=frozenset)
    sums: frozenset[str] = frozenset()
    residual: frozenset[str] = frozenset()
    unmasked: frozenset[str] = frozenset()
    inner: frozenset[int] = frozenset()
    untrained: frozenset[str] = frozenset()
    frozen: bool = False
    drops: bool = False
    penalized: bool = False
    adds: bool = False
    averaged: bool = False
    flat: bool = False
    in_call: bool = False


def read_original(model: keras.Model, x: Any = None) -> Original:
    """Return what a rescue needs to know of a built model.

    Args:
        model: The model.
        x: A few samples, on which a copy of layers of the user's own is run; None to leave these as they are.
    """
    own_step = has_own_train_step(model)
    plain = not own_step and type(model).compile is keras.Model.compile and bool(compile_arguments(model))
    plain = plain and type(model).compute_loss is keras.Model.compute_loss
    kept = frozenset(layer.name for layer in sublayers(model) if _keeps_weights(layer))
    graph = model_graph(model) if plain and is_graph(model) else None
    surgical = graph is not None and bool(model.inputs)
    layers = sublayers(model)
    frozen = [layer for layer in layers if frozen_variables(layer)]
    everywhere: dict[str, Any] = {
        "kept": kept,
        "inner": frozenset() if x is None else exchangeable_activations(model, x, kept, everywhere=not surgical),
        "untrained": frozenset(layer.name for layer in frozen if not is_trained(layer)),
        "frozen": bool(frozen),
        "drops": any(is_held(layer, NOISE) for layer in layers),
        "penalized": any(is_held(layer, LIMITS) for layer in layers),
        "unmasked": frozenset(one.name for one in layers if getattr(one, "mask_zero", None) is False),
        "adds": any(map(adds_losses, [model, *layers])),
        "averaged": any(map(_averages_slowly, layers)),
    }
    if not surgical:
        return Original(model, surgical=False, wrappable=plain, **everywhere)
    heads, tail = _heads(graph)
    children = graph.children
    hidden, activations, normalizations, recurrent = set(), set(), set(), set()
    for place, node in enumerate(graph.nodes):
        name, layer = node.operation.name, node.operation
        if name in heads or name in tail:
            continue
        if node.kind in NORMALIZATIONS:
            normalizations.add(name)
        if node.kind in RECURRENT or node.kind == "Bidirectional":
            recurrent.add(name)
        if node.weighted:
            hidden.add(name)
        gate = any(graph.nodes[child].kind in GATES for child in children[place])
        bends = activation_of(layer) not in (None, "linear", "unknown", "softmax")
        bends = (bends and (node.weighted or node.kind in ACTIVATION_LAYERS)) or is_flat(layer)
        if bends and not gate and name not in kept and name not in recurrent:
            activations.add(name)
    sums, starts = _residual_sums(graph)
    return Original(
        model,
        surgical=True,
        wrappable=True,
        hidden=frozenset(hidden),
        heads=frozenset(heads),
        tail=frozenset(tail),
        activations=frozenset(activations),
        normalizations=frozenset(normalizations),
        recurrent=frozenset(recurrent),
        sums=frozenset(sums),
        residual=frozenset(sums | starts) if len(sums) >= MIN_SUMS else frozenset(),
        **everywhere,
    )


def _residual_sums(graph: ModelGraph) -> tuple[set[str], set[str]]:
    """Return the names of the sums that a skip connection ends in, and of the nodes that one starts from."""
    weighted_behind: list[set[int]] = []  # for each node those before it with a weighted layer between
    before: list[set[int]] = []  # for each node all before it
    sums, starts = set(), set()
    for place, node in enumerate(graph.nodes):
        above = set(node.parents).union(*(before[parent] for parent in node.parents))
        passed = set().union(*(weighted_behind[parent] for parent in node.parents))
        before.append(above)
        weighted_behind.append(passed | above if node.weighted else passed)
        if node.kind != "Add":
            continue
        skipped = {one for one in node.parents if any(one in weighted_behind[other] for other in node.parents)}
        if skipped:
            sums.add(graph.nodes[place].operation.name)
            starts |= {graph.nodes[one].operation.name for one in skipped if graph.nodes[one].kind != "InputLayer"}
    return sums, starts


def _heads(graph: ModelGraph) -> tuple[set[str], set[str]]:
    heads: set[str] = set()
    tail: set[str] = set()
    for place in graph.outputs:
        while True:
            node = graph.nodes[place]
            if node.weighted:
                heads.add(node.operation.name)
                break
            if len(node.parents) != 1:
                break
            tail.add(node.operation.name)
            place = node.parents[0]
    return heads, tail


def _keeps_weights(layer: keras.layers.Layer) -> bool:
    """Return whether a layer's weights are not as its initializers draw them: frozen, or loaded from elsewhere.

    Weights that are far too large or too small are taken for a mistake, which is what is to be repaired.
    """
    own = [weight for weight in layer.weights if len(weight.shape) >= 2]
    if not own or sublayers(layer):
        return False
    return not layer.trainable or is_drawn_otherwise(layer)


def _averages_slowly(layer: Any) -> bool:
    slow = getattr(layer, "momentum", 0.0) > MOVING_AVERAGE or getattr(layer, "epsilon", 1.0) < SAFE_EPSILON
    return type(layer).__name__ == "BatchNormalization" and slow


CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


@dataclass(frozen=True)
class Difference(Record):
    """Name one setting that differs between two setups.

    Args:
        setting: Name of the field of `Setup`.
        before: Its value in the one.
        after: Its value in the other.
    """

    setting: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Setup(Record):
    """Describe how a model is built, compiled and fitted, as far as a rescue may change it.

    Args:
        batch_size: Samples in a batch.
        epochs: Passes over the data.
        optimizer: Class of the optimizer; `"own"` for one that cannot be built again from its config.
        learning_rate: Constant rate; None with a schedule of the user's.
        schedule: Class of the user's schedule, or None.
        schedule_settings: Its arguments.
        rate_factor: What the user's rate or schedule is multiplied by.
        settings: All other settings of the optimizer by Keras' names.
        clipping: `clipnorm`, `clipvalue` or `global_clipnorm` and its value, or None.
        warm_up: Steps over which the rate rises to its value.
        guard: Whether a `GradientGuard` is among the callbacks.
        loss: Name of the loss on the output.
        from_logits: Whether the loss applies the activation itself; None where that is no question.
        head: Activation of the output; `"own"` where it is not known.
        units: Entries of the output's last axis; None where they are not known.
        inputs: `"own"` or `"standardized"`: mean 0 and standard deviation 1 by a Normalization in front.
        targets: `"own"` or `"standardized"`: the layers see standardized targets, predictions keep the user's units.
        initializers: `"own"` or `"fitting"`: drawn anew by initializers that fit the activations.
        activation: `"own"`, or the name of the activation of all hidden layers.
        normalization: `"own"`, or `"layer"`: LayerNormalization after every hidden layer, in place of any other; in a
            residual net without any, in front of each branch and behind the last sum.
        skips: Whether hidden layers whose input and output have one shape add their input to their output.
        precision: Name of the dtype policy.
        optimizer_state: `"own"`, or `"fresh"` for an optimizer that has seen no gradient; every other change starts
            with one as well.
        order: `"own"`, or `"shuffled"`, for the samples of a dataset.
        positive: Columns of the output that go through softplus, since the loss is not finite below 0.
        trainable: `"own"`, `"untrained"` for frozen layers that were never trained, or `"all"`.
        dropout: `"own"` or `"none"`.
        regularizers: `"own"` or `"none"`.
        added_losses: What the losses that layers of the user's own add are multiplied by.
        loss_weights: `"own"`, or `"none"` for the losses of all outputs as they are.
        masking: `"own"`, or `"zeros"` for sequences whose zeros are masked.
        moving_averages: `"own"`, or `"fast"` for those of BatchNormalization, with a usual epsilon.
        target_shape: `"own"`, or `"column"` for flat targets that become one.
        target_values: `"own"`, or `"zero_one"` for two other values that become 0 and 1.
        class_weights: What the samples of each class weigh; empty for all the same.
        samples: `"own"`, or `"left out"` for all but those that no training can use.
        gaps: `"own"`, or `"median"` for inputs whose entries that are not finite, or mark a gap, are the median.

    Example:
        >>> setup = Setup(batch_size=32, epochs=5, optimizer="SGD", learning_rate=0.1)
        >>> setup.diff(dataclasses.replace(setup, rate_factor=0.1))
        (Difference(setting='rate_factor', before=1.0, after=0.1),)
    """

    batch_size: int
    epochs: int
    optimizer: str = OWN
    learning_rate: float | None = None
    schedule: str | None = None
    schedule_settings: Mapping[str, Any] = field(default_factory=dict)
    rate_factor: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    clipping: tuple[str, ...] = ()
    warm_up: int = 0
    guard: bool = False
    loss: str = OWN
    from_logits: bool | None = None
    head: str = OWN
    units: int | None = None
    inputs: str = OWN
    targets: str = OWN
    initializers: str = OWN
    activation: str = OWN
    normalization: str = OWN
    skips: bool = False
    precision: str = OWN
    optimizer_state: str = OWN
    order: str = OWN
    positive: tuple[int, ...] = ()
    trainable: str = OWN
    dropout: str = OWN
    regularizers: str = OWN
    added_losses: float = 1.0
    loss_weights: str = OWN
    masking: str = OWN
    moving_averages: str = OWN
    target_shape: str = OWN
    target_values: str = OWN
    class_weights: Mapping[str, float] = field(default_factory=dict)
    samples: str = OWN
    gaps: str = OWN

    @property
    def class_weight(self) -> dict[int, float]:
        """What the samples of each class weigh, as `fit` takes it."""
        return {int(label): weight for label, weight in self.class_weights.items()}

    def diff(self, other: Setup) -> tuple[Difference, ...]:
        """Return what differs in another setup, setting by setting, in the order of the fields."""
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in dataclasses.fields(self)]
        return tuple(Difference(name, before, after) for name, before, after in pairs if before != after)


def setup_of(model: keras.Model, description: Description | None, *, batch_size: int, epochs: int) -> Setup:
    """Return the setup of a compiled model, as its user has it.

    Args:
        model: A compiled model.
        description: What its trace says of it, or None.
        batch_size: Samples in a batch.
        epochs: Passes over the data.
    """
    compiled = compile_arguments(model)
    output = description.outputs[0] if description is not None and len(description.outputs) == 1 else None
    known = {
        "loss": (output.loss or OWN) if output else OWN,
        "from_logits": output.from_logits if output else None,
        "head": (output.activation or OWN) if output and output.certain else OWN,
        "units": output.units if output else None,
        "precision": _precision(model),
    }
    if not compiled or not is_rebuildable(optimizer := keras.optimizers.get(compiled["optimizer"])):
        return Setup(batch_size=batch_size, epochs=epochs, **known)
    config = optimizer_config(optimizer)
    rate = config.pop("learning_rate", None)
    clips = [(name, config.pop(name)) for name in CLIPS if config.get(name) is not None]
    config = {name: value for name, value in config.items() if name not in CLIPS and not isinstance(value, dict | list)}
    settings = rate["config"].items() if isinstance(rate, dict) else ()
    return Setup(
        batch_size=batch_size,
        epochs=epochs,
        optimizer=type(unwrapped(optimizer)).__name__,
        learning_rate=float(str(np.float32(rate))) if isinstance(rate, int | float) else None,  # 0.001 as it was given
        schedule=rate["class_name"] if isinstance(rate, dict) else None,
        schedule_settings={name: value for name, value in settings if name != "name" and value is not None},
        settings=config,
        clipping=tuple(map(str, clips[0])) if clips else (),
        **known,
    )


def _precision(model: keras.Model) -> str:
    """Return the name of the dtype policy, that of a layer where only layers compute in half precision."""
    low = [one.dtype_policy.name for one in sublayers(model) if one.compute_dtype in HALF_PRECISION]
    return low[0] if low and model.compute_dtype not in HALF_PRECISION else model.dtype_policy.name


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer within a LossScaleOptimizer, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", None) or optimizer


def is_rebuildable(optimizer: Any) -> bool:
    """Return whether an optimizer is one of Keras' that its config describes whole."""
    inner = unwrapped(optimizer)
    return type(inner).__module__.startswith("keras.") and hasattr(keras.optimizers, type(inner).__name__)


def optimizer_config(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the config of an optimizer, of a wrapped one that of the inner, without its name."""
    inner = unwrapped(optimizer)
    if (schedule := own_schedule(inner)) is None:
        config = dict(inner.get_config())
    else:
        settings: dict[str, Any] = {}
        with contextlib.suppress(NotImplementedError):  # as of most that a script defines
            settings = dict(schedule.get_config())
        config = config_without_schedule(inner)
        config["learning_rate"] = {"class_name": type(schedule).__name__, "config": settings}
    config.pop("name", None)
    return config
