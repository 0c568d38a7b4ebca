"""What a compiled Keras model is: one plain record, made once, that every probe, rule and report reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradrecipes.core.trace.record import Record

ADAPTIVE = {"Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "Lion"}
Shape = tuple[int | None, ...]  # without samples; None for an axis of any length


@dataclass(frozen=True)
class LayerDescription(Record):
    """Describe one layer.

    Args:
        name: Unique within the record.
        kind: Name of its class, such as `"Dense"`.
        activation: Keras' name of its activation; None where it has none.
        initializer: Class of its kernel initializer, or None.
        fan_in: Inputs of one unit; None without a kernel.
        units: Output units; None without a kernel.
        weight_std: Standard deviation of the initial kernel; None until the first sample.
        weight_mean: Mean of the initial kernel; None until the first sample.
        parameters: Entries of its trainable variables.
        trainable: Whether it is trained.
        custom: Whether its class is the user's own.
    """

    name: str
    kind: str = ""
    activation: str | None = None
    initializer: str | None = None
    fan_in: int | None = None
    units: int | None = None
    weight_std: float | None = None
    weight_mean: float | None = None
    parameters: int | None = None
    trainable: bool | None = None
    custom: bool = False


@dataclass(frozen=True)
class Regularization(Record):
    """Name one thing that holds a layer back while it is trained.

    Args:
        layer: Name of the layer.
        kind: `"dropout"`, `"noise"`, `"penalty"` or `"constraint"`.
        words: It and its strength, as in "dropout of 0.5" and "L1(l1=0.1)".
    """

    layer: str
    kind: str = ""
    words: str = ""


@dataclass(frozen=True)
class FrozenLayer(Record):
    """Describe a layer with weights that are made to be trained, and are not.

    Args:
        name: Name of the layer.
        kind: Name of its class.
        entries: Entries of those weights.
        kernel: Whether a kernel, embedding or other matrix is among them.
        untrained: Whether they are what an initializer gives: a bias of zeros, a normalization that never saw data;
            None where that cannot be told.
    """

    name: str
    kind: str = ""
    entries: int = 0
    kernel: bool = False
    untrained: bool | None = None


@dataclass(frozen=True)
class Call(Record):
    """Describe one call of a layer or operation in the graph of a model.

    Args:
        name: Name of the layer or operation.
        kind: Name of its class.
        parents: Positions, within `Description.calls`, of the calls that feed it, in the order of its arguments.
        weighted: Whether it multiplies its inputs by a matrix of weights.
    """

    name: str
    kind: str
    parents: tuple[int, ...] = ()
    weighted: bool = False


@dataclass(frozen=True)
class InputDescription(Record):
    """Describe one input of a model.

    Args:
        name: Name of the input; None in a subclassed model.
        shape: Without samples; None where it is not known.
        normalized: Class of the layer or operation that scales it before all weights, or None.
        first_kind: Class of the first layer with weights behind it, or None.
        looked_up: Whether its numbers are only looked up in a table, as the indices of an embedding are.
    """

    name: str | None = None
    shape: Shape | None = None
    normalized: str | None = None
    first_kind: str | None = None
    looked_up: bool = False


@dataclass(frozen=True)
class OutputDescription(Record):
    """Describe one output of a model and the loss on it.

    Args:
        name: Name of the output.
        units: Entries of its last axis, or None.
        shape: Without samples; None where it is not known.
        activation: The last activation that acts on it; `"unknown"` where an operation is not understood.
        activations: All activations behind the last weighted layer, the last one first.
        certain: Whether the activations were read from the graph and all understood.
        target: Position of its target among the flattened targets, or None.
        loss: Keras' name of the loss, or the name of the user's function; None without a loss.
        loss_class: Class of the loss, where it is a class.
        custom: Whether the loss is the user's own.
        from_logits: Whether the loss applies the activation itself; None where that is no question.
        config: Settings of the loss.
        loss_weight: What the loss is multiplied by in the sum; None where `compile` was given no weights.
    """

    name: str = ""
    units: int | None = None
    shape: Shape | None = None
    activation: str | None = None
    activations: tuple[str, ...] = ()
    certain: bool = False
    target: int | None = None
    loss: str | None = None
    loss_class: str | None = None
    custom: bool = False
    from_logits: bool | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    loss_weight: float | None = None

    @property
    def factor(self) -> float:
        """What the loss is multiplied by in the sum, 1 where `compile` was given no weights."""
        return 1.0 if self.loss_weight is None else self.loss_weight


# Settings of Keras' optimizers: the least and largest value that is usual, and what is set in place of another one.
USUAL_SETTINGS = {
    "momentum": (0.0, 0.95, 0.9),
    "beta_1": (0.0, 0.95, 0.9),
    "beta_2": (0.9, 0.9999, 0.999),
    "rho": (0.8, 0.99, 0.9),
    "epsilon": (0.0, 1e-3, 1e-7),
}
HOLDING_SETTINGS = ("clipnorm", "global_clipnorm", "clipvalue", "weight_decay", "gradient_accumulation_steps")


@dataclass(frozen=True)
class OptimizerDescription(Record):
    """Describe the optimizer that updates the weights.

    Args:
        name: Name of its class; of a wrapped one, that of the inner optimizer.
        learning_rate: The rate when the record was made; None where there is no single one, as of several optimizers.
        schedule: Class of the learning-rate schedule, or None.
        loss_scaler: Class of the optimizer that scales the loss, or None.
        count: How many optimizers the model has, without those that do no step where others do; the other fields
            describe the first.
        settings: All settings by Keras' names, such as `momentum`, `beta_1`, `epsilon`.
    """

    name: str
    learning_rate: float | None = None
    schedule: str | None = None
    loss_scaler: str | None = None
    count: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """Whether it divides the size of a gradient away."""
        return self.name in ADAPTIVE

    @property
    def unusual(self) -> dict[str, Any]:
        """The settings, but for the rate, that differ from what trains most nets, each with the usual value."""
        found: dict[str, Any] = {}
        for name, (low, high, usual) in USUAL_SETTINGS.items():
            value = self.setting(name)
            if value is not None and not low <= value <= high:
                found[name] = usual
        found |= {name: None for name in HOLDING_SETTINGS if self.setting(name)}
        return found | ({"use_ema": False} if self.settings.get("use_ema") else {})

    def setting(self, name: str) -> float | None:
        """Return a setting that is a finite number, or None."""
        value = self.settings.get(name)
        return _finite(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Description(Record):
    """Describe a compiled model: its layers, graph, inputs, outputs with losses, optimizer, and train step.

    It holds no Keras objects, so that a record made on one machine is read on another. Where something is not known,
    a field is None.

    Args:
        model: Name of the model.
        layers: The layers that are monitored or examined, in the order in which they are called.
        frozen: The layers whose weights are frozen, at any depth.
        regularization: What holds layers back while they are trained, at any depth; decay is the optimizer's.
        trainable_entries: Entries of all trainable variables; None where it was not recorded.
        calls: The graph in the order of the data flow; None for a subclassed model, whose graph is its code.
        inputs: Of a subclassed model one, read from its layers in the order of their attachment.
        outputs: With their losses; empty where the record was made without the model's structure.
        optimizer: None for a model that is not compiled.
        loss: What the user calls the loss; several are joined by commas.
        precision: Name of the dtype policy.
        batch_size: Samples in a batch; None where it is not known.
        depth: Weighted layers on the longest path from an input to an output; None where the graph is not known.
        skips: Merges on that path at which a skip connection arrives.
        plain_depth: The longest run of weighted layers that no skip connection passes over.
        plain_batch_normalizations: BatchNormalization layers in that run.
        vector_batch_normalizations: BatchNormalization layers that average over nothing but the samples.
        slowest_average: The largest momentum of a BatchNormalization that is trained and has its initial moving
            averages; None where there is none.
        normalizations: How many layers of each kind of normalization.
        kinds: How many layers of each class, at any depth.
        masked: Whether a Masking layer, or an Embedding with a mask, is among them.
        own_train_step: Whether `train_step` is the user's own.
        own_loss: Whether `compute_loss` is the user's own.
        keras: Version.
        tensorflow: Version.
    """

    model: str = ""
    layers: tuple[LayerDescription, ...] = ()
    frozen: tuple[FrozenLayer, ...] = ()
    regularization: tuple[Regularization, ...] = ()
    trainable_entries: int | None = None
    calls: tuple[Call, ...] | None = None
    inputs: tuple[InputDescription, ...] = ()
    outputs: tuple[OutputDescription, ...] = ()
    optimizer: OptimizerDescription | None = None
    loss: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    depth: int | None = None
    skips: int | None = None
    plain_depth: int | None = None
    plain_batch_normalizations: int | None = None
    vector_batch_normalizations: int | None = None
    slowest_average: float | None = None
    normalizations: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    masked: bool | None = None
    own_train_step: bool | None = None
    own_loss: bool | None = None
    keras: str | None = None
    tensorflow: str | None = None

    @property
    def learning_rate(self) -> float | None:
        """The optimizer's rate when the record was made."""
        return None if self.optimizer is None else self.optimizer.learning_rate

    @property
    def loss_scaler(self) -> str | None:
        """Class of the optimizer that scales the loss, or None."""
        return None if self.optimizer is None else self.optimizer.loss_scaler

    @property
    def averages_batches(self) -> bool:
        """Whether a BatchNormalization is there: what the model answers waits for its moving averages."""
        return "BatchNormalization" in self.normalizations

    def with_initial_weights(self, spreads: Mapping[int, tuple[float, float]]) -> Description:
        """Return the description with the spread of the initial kernels.

        Args:
            spreads: (standard deviation, mean) by position in `layers`; what is not finite becomes None.
        """
        layers = list(self.layers)
        for place, (std, mean) in spreads.items():
            layers[place] = replace(layers[place], weight_std=_finite(std), weight_mean=_finite(mean))
        return replace(self, layers=tuple(layers))

    def __repr__(self) -> str:
        optimizer = self.optimizer
        lines = [f"<Description of {self.model or 'a model'}: {len(self.layers)} layers, precision {self.precision}"]
        for entry in self.inputs:
            lines.append(f"  input {entry.name}: shape {entry.shape}, into {entry.normalized or entry.first_kind}")
        for output in self.outputs:
            lines.append(f"  output {output.name}: shape {output.shape}, {output.activation}, loss {output.loss}")
        if optimizer is not None:
            rate = "no single rate" if optimizer.learning_rate is None else f"rate {optimizer.learning_rate:g}"
            lines.append(f"  {optimizer.name}, {rate}, schedule {optimizer.schedule}")
        if self.depth is not None:
            lines.append(f"  depth {self.depth}, {self.skips} skips, plain depth {self.plain_depth}")
        return "\n".join(lines) + ">"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
