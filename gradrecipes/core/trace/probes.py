"""What the probes measured without training."""

from __future__ import annotations

from dataclasses import dataclass

from gradrecipes.core.trace.autopsy import Autopsy
from gradrecipes.core.trace.data_reading import DataReading, NoiseReading
from gradrecipes.core.trace.drawn_once import DrawnOnce
from gradrecipes.core.trace.record import Record
from gradrecipes.core.trace.trial_reading import Sharpness, TrialReading


@dataclass(frozen=True)
class LayerSignal(Record):
    """What one layer put out on one batch, and the gradient that came back to it.

    Args:
        name: Name of the layer.
        kind: Name of its class.
        activation: Keras' name of its activation, or None.
        dtype: Of its output.
        input_rms: Root mean square of its input.
        output_rms: Root mean square of its output.
        output_mean: Mean of its output.
        output_max: Largest magnitude of its output.
        nonfinite_share: Share of the entries of its output that are not finite.
        zero_share: Share of the entries that are 0.
        dead_share: Share of the ReLU units that are 0 for every sample; None for other activations.
        saturated_share: Share of the entries next to a bound of the activation; None without bounds.
        output_gradient_norm: L2 norm of the gradient with respect to its output.
        activation_exponent: Power of its input with which the activation grows far out.
        activation_gain: Output over input of the activation on unit Gaussian inputs.
    """

    name: str
    kind: str = ""
    activation: str | None = None
    dtype: str = ""
    input_rms: float | None = None
    output_rms: float | None = None
    output_mean: float | None = None
    output_max: float | None = None
    nonfinite_share: float = 0.0
    zero_share: float | None = None
    dead_share: float | None = None
    saturated_share: float | None = None
    output_gradient_norm: float | None = None
    activation_exponent: float | None = None
    activation_gain: float | None = None


@dataclass(frozen=True)
class WeightScale(Record):
    """The spread of one variable beside what the usual initializers would draw.

    Args:
        path: Path of the variable.
        layer: Name of its layer.
        kind: Class of its layer.
        role: `"kernel"`, `"recurrent"`, `"embedding"`, `"matrix"` of the user's own layer, `"bias"` or `"other"`.
        shape: Shape of the variable.
        mean: Mean of its entries.
        std: Standard deviation.
        rms: Root mean square.
        largest: Largest magnitude.
        fan_in: Of kernels and matrices.
        fan_out: Of kernels and matrices.
        least: Smallest standard deviation among Glorot, LeCun and the activation's own initializer.
        most: Largest of these.
    """

    path: str
    layer: str = ""
    kind: str = ""
    role: str = "other"
    shape: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 0.0
    rms: float = 0.0
    largest: float = 0.0
    fan_in: int | None = None
    fan_out: int | None = None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class AttentionReading(Record):
    """How sharply one attention chose among its keys on one batch; masked entries are left out.

    Args:
        name: Where in the graph its softmax stands: names of layers and operations.
        keys: Entries of a row of logits.
        largest_logit: Largest magnitude of a logit, after scale and bias.
        spread: Highest minus lowest logit of a row, in the mean over the rows that have several.
        top: Share that the largest weight of a row takes, in the mean over these rows; 1 is one-hot.
    """

    name: str
    keys: int = 0
    largest_logit: float = 0.0
    spread: float = 0.0
    top: float = 0.0


@dataclass(frozen=True)
class SignalReading(Record):
    """What every layer did on one batch.

    Args:
        layers: In the order of the calls.
        attention: Each softmax over products of queries and keys, in the order of the calls.
        weights: Every trainable variable.
        loss: Loss of the batch, or None.
        error: Why the pass failed, or None.
    """

    layers: tuple[LayerSignal, ...] = ()
    attention: tuple[AttentionReading, ...] = ()
    weights: tuple[WeightScale, ...] = ()
    loss: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class LossEquivalent(Record):
    """The Keras loss that a user's loss equals in value.

    Args:
        loss: Keras' name.
        from_logits: Whether it takes logits; None where that is no question.
    """

    loss: str
    from_logits: bool | None = None


@dataclass(frozen=True)
class OutputReading(Record):
    """What a net put out on one batch, over finite entries.

    Args:
        shape: Without samples.
        rms: Root mean square.
        min: Smallest entry.
        max: Largest entry.
        mean: Mean.
        std: Standard deviation.
        nonfinite_share: Share of the entries that are not finite.
        sums_to_one: Share of the rows that are distributions; None for a single unit.
        sums_over: Axis whose entries sum to 1 where those of the last one do not, 0 for the samples; None for none.
        target_shape: Shape of its targets without samples; None where there are none.
        logits_seen: Whether a loss with `from_logits=True` behind a softmax or sigmoid gets the logits all the same;
            None where that is no question.
        pairs_samples: False where a user's loss compares every prediction with every target; None where that is no
            question.
        acts_like: The Keras loss that the user's loss equals, or None.
        far_losses: Values of the user's loss at the net's own answers, and 1e2, 1e4 and 1e6 times their size away from
            them, in the direction in which the loss falls; None where that is no question.
        sample_spread: Largest standard deviation of an entry over the samples, over the root mean square; 0 where the
            answers are the same for all samples, None for a single one.
        beyond: Values of the user's loss at the net's own answers, at the targets, and at twice the targets; None where
            that is no question.
        mispaired: Values of the loss at the net's own answers, at right ones, and at those that belong to other
            samples; None where right answers are not known.
        flat: Whether the slope of the user's loss is exactly 0 at all predictions, though the loss is not.
    """

    shape: tuple[int, ...] | None = None
    rms: float | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    nonfinite_share: float = 0.0
    sums_to_one: float | None = None
    sums_over: int | None = None
    target_shape: tuple[int, ...] | None = None
    logits_seen: bool | None = None
    pairs_samples: bool | None = None
    acts_like: LossEquivalent | None = None
    far_losses: tuple[float, ...] | None = None
    sample_spread: float | None = None
    beyond: tuple[float, ...] | None = None
    mispaired: tuple[float, ...] | None = None
    flat: bool = False


@dataclass(frozen=True)
class LossPoint(Record):
    """One evaluation of a loss and of its gradient with respect to the predictions.

    Args:
        output: Position of the output.
        at: Where: `"outputs"`, `"targets"`, an end of the activation such as `"0"`, or `"one class"`.
        activation: The output's last activation, or None.
        value: `"finite"`, `"nan"` or `"inf"`.
        gradient: Likewise.
        samples: The first 20 samples whose gradient is not finite.
    """

    output: int
    at: str
    activation: str | None = None
    value: str = "finite"
    gradient: str = "finite"
    samples: tuple[int, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether both the loss and its gradient are finite."""
        return self.value == "finite" and self.gradient == "finite"


@dataclass(frozen=True)
class CrossEntropyCall(Record):
    """A binary cross-entropy within a user's train step that takes its answers for what they are not.

    Args:
        from_logits: Whether it takes logits, and got probabilities; otherwise the other way round.
        min: Smallest of the answers on one batch.
        max: Largest.
        calls: How many of the step's cross-entropies do so.
    """

    from_logits: bool
    min: float
    max: float
    calls: int = 1


@dataclass(frozen=True)
class UnreachedData(Record):
    """Data that one net of a train step gets beside the answers of another one, which cannot be like them.

    Args:
        judge: Name of the net that gets both.
        maker: Name of the net that answers.
        activation: Its last one.
        low: Least answer that this can give.
        high: Largest.
        min: Smallest entry of the data of a batch.
        max: Largest.
        share: Share of the entries that lie outside of what the activation can give.
    """

    judge: str
    maker: str
    activation: str
    low: float
    high: float
    min: float
    max: float
    share: float


@dataclass(frozen=True)
class LossReading(Record):
    """What the net put out on one batch, and where its loss is not finite.

    Args:
        outputs: In flattened order.
        points: Evaluations of the losses.
        error: Why the model could not be run, or None.
        misread: Cross-entropies within a user's train step that got logits for probabilities, or the reverse.
        unreached: Data within such a step that the answers they are compared with cannot reach.
        drawn_once: Random numbers that are the same at each step, or None.
    """

    outputs: tuple[OutputReading, ...] = ()
    points: tuple[LossPoint, ...] = ()
    error: str | None = None
    misread: tuple[CrossEntropyCall, ...] = ()
    unreached: tuple[UnreachedData, ...] = ()
    drawn_once: DrawnOnce | None = None


@dataclass(frozen=True)
class RecurrentReading(Record):
    """How one recurrent layer multiplies a gradient on its way back through time.

    Args:
        layer: Name of the layer.
        kind: Name of its class.
        activation: Keras' name of its activation.
        recurrent_activation: Keras' name of its gates' activation.
        units: State size.
        spectral_radius: Of the recurrent kernel; of the candidate's part in a gated cell.
        steps: Length of the sequences.
        window: Steps at the end of the sequences that were measured.
        growth_per_step: Geometric mean over steps and samples of the growth of a gradient.
        growth_fastest_sample: The same for the sample with the largest.
        reach: Steps back that a gradient reaches before it is exactly 0.
        log10_growth: Growth over these steps, as a power of ten.
        growth: Growth over these steps.
        state_growth_per_step: Growth of the states' root mean square over the second half of the steps.
        state_rms: After the last step.
        state_max: After the last step.
        nonfinite_step: Step at which a state stopped being finite, or None.
        note: What could not be measured, or None.
    """

    layer: str
    kind: str = ""
    activation: str | None = None
    recurrent_activation: str | None = None
    units: int | None = None
    spectral_radius: float | None = None
    steps: int | None = None
    window: int | None = None
    growth_per_step: float | None = None
    growth_fastest_sample: float | None = None
    reach: float | None = None
    log10_growth: float | None = None
    growth: float | None = None
    state_growth_per_step: float | None = None
    state_rms: float | None = None
    state_max: float | None = None
    nonfinite_step: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class ForwardPassReading(Record):
    """The samples for which the output, the loss, or the gradient of the loss is not finite.

    Args:
        samples: How many were passed through the net; the batch that could not be begins there.
        nonfinite_samples: The first 20 such samples.
        error: Why the pass ended early, or None.
        nonfinite_batch: The samples of a batch for which they are not finite though they are for each sample alone.
    """

    samples: int = 0
    nonfinite_samples: tuple[int, ...] = ()
    error: str | None = None
    nonfinite_batch: tuple[int, ...] = ()


@dataclass(frozen=True)
class FailureReading(Record):
    """An error that kept a model from being built or trained.

    Args:
        stage: `"build"` or `"step"`.
        type: Class of the error.
        message: What it says.
    """

    stage: str
    type: str
    message: str


@dataclass(frozen=True)
class Probes(Record):
    """Everything that was measured beside the training itself; None for what was not measured.

    Args:
        data: The training data.
        validation: The validation data.
        signal: Every layer on one batch before any update.
        signal_after: The same after the trial.
        loss: Outputs and loss on one batch.
        recurrent: Every recurrent layer; empty without one.
        forward_pass: All the data passed through the net once.
        sharpness: Curvature of the loss.
        noise: Noise of the gradient.
        nonfinite_slots: Paths of optimizer variables that hold a NaN or infinity before the first step.
        trial: A short trial and its variations.
        autopsy: Of a step of the training that broke.
        failure: Why the model could not be built or trained.
    """

    data: DataReading | None = None
    validation: DataReading | None = None
    signal: SignalReading | None = None
    signal_after: SignalReading | None = None
    loss: LossReading | None = None
    recurrent: tuple[RecurrentReading, ...] | None = None
    forward_pass: ForwardPassReading | None = None
    sharpness: Sharpness | None = None
    noise: NoiseReading | None = None
    nonfinite_slots: tuple[str, ...] | None = None
    trial: TrialReading | None = None
    autopsy: Autopsy | None = None
    failure: FailureReading | None = None

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return any(getattr(self, name) is not None for name in self.__dataclass_fields__)
