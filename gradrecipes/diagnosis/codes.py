"""The table of codes: what can be found, by which rule, and what it is called in one line.

The order is that in which trouble arises: data before weights, weights before the rate. It decides where rules are
equally sure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gradrecipes.core.finding import Finding, Kind
from gradrecipes.core.trace import Trace
from gradrecipes.diagnosis.rules.batch_too_small import batch_too_small
from gradrecipes.diagnosis.rules.corrupt_batch import corrupt_batch
from gradrecipes.diagnosis.rules.dead_units import dead_units
from gradrecipes.diagnosis.rules.diverging_loss import diverging_loss
from gradrecipes.diagnosis.rules.embedding_spike import embedding_spike
from gradrecipes.diagnosis.rules.exploding_batch_normalization import exploding_batch_normalization
from gradrecipes.diagnosis.rules.exploding_gradient import exploding_gradient
from gradrecipes.diagnosis.rules.exploding_initialization import exploding_initialization
from gradrecipes.diagnosis.rules.failing_step import failing_step
from gradrecipes.diagnosis.rules.float16_overflow import float16_overflow
from gradrecipes.diagnosis.rules.learning_rate_too_high import learning_rate_too_high
from gradrecipes.diagnosis.rules.learning_rate_too_low import learning_rate_too_low
from gradrecipes.diagnosis.rules.loss_output_mismatch import loss_output_mismatch
from gradrecipes.diagnosis.rules.missing_normalization import missing_normalization
from gradrecipes.diagnosis.rules.nonfinite_data import nonfinite_data
from gradrecipes.diagnosis.rules.nonfinite_loss import nonfinite_loss
from gradrecipes.diagnosis.rules.optimizer_state import optimizer_state
from gradrecipes.diagnosis.rules.oscillating_loss import oscillating_loss
from gradrecipes.diagnosis.rules.plain_depth import plain_depth
from gradrecipes.diagnosis.rules.recurrent_gain import recurrent_gain
from gradrecipes.diagnosis.rules.saturated_units import saturated_units
from gradrecipes.diagnosis.rules.stalled_loss import stalled_loss
from gradrecipes.diagnosis.rules.unbounded_activation import unbounded_activation
from gradrecipes.diagnosis.rules.unsafe_loss import unsafe_loss
from gradrecipes.diagnosis.rules.unscaled_inputs import unscaled_inputs
from gradrecipes.diagnosis.rules.unscaled_targets import unscaled_targets
from gradrecipes.diagnosis.rules.validation_degrading import validation_degrading
from gradrecipes.diagnosis.rules.vanishing_gradient import vanishing_gradient
from gradrecipes.diagnosis.rules.vanishing_initialization import vanishing_initialization


class Code(NamedTuple):
    """Tell what a code means: the rule that finds it, cause or symptom, and a line for a list."""

    rule: Callable[[Trace], Finding | None]
    kind: Kind
    title: str


CODES: dict[str, Code] = {
    "failing_step": Code(failing_step, Kind.CAUSE, "A training step cannot be run at all"),
    "nonfinite_data": Code(nonfinite_data, Kind.CAUSE, "The data hold NaN or infinite values"),
    "loss_output_mismatch": Code(
        loss_output_mismatch, Kind.CAUSE, "Loss, last activation and labels do not fit together"
    ),
    "corrupt_batch": Code(corrupt_batch, Kind.CAUSE, "A few samples are absurd beside all others"),
    "unsafe_loss": Code(unsafe_loss, Kind.CAUSE, "The loss is NaN or infinite for outputs that can occur"),
    "float16_overflow": Code(float16_overflow, Kind.CAUSE, "Half precision is too narrow for what the net computes"),
    "optimizer_state": Code(optimizer_state, Kind.CAUSE, "The optimizer's settings or memory spoil its steps"),
    "unscaled_inputs": Code(unscaled_inputs, Kind.CAUSE, "The inputs are far from unit size"),
    "unscaled_targets": Code(unscaled_targets, Kind.CAUSE, "The targets are far from unit size"),
    "exploding_initialization": Code(
        exploding_initialization, Kind.CAUSE, "The initial weights are too large for the depth and the activation"
    ),
    "unbounded_activation": Code(unbounded_activation, Kind.CAUSE, "An activation grows faster than what it is given"),
    "recurrent_gain": Code(
        recurrent_gain, Kind.CAUSE, "The recurrent weights multiply the gradient at every time step"
    ),
    "embedding_spike": Code(embedding_spike, Kind.CAUSE, "The embedding is out of proportion to the rest of the net"),
    "exploding_batch_normalization": Code(
        exploding_batch_normalization,
        Kind.CAUSE,
        "Batch normalization without skip connections multiplies the gradients",
    ),
    "missing_normalization": Code(missing_normalization, Kind.CAUSE, "Residual sums grow, for nothing sets their size"),
    "vanishing_initialization": Code(
        vanishing_initialization, Kind.CAUSE, "The initial weights lose the signal or the gradient"
    ),
    "dead_units": Code(dead_units, Kind.CAUSE, "ReLU units are zero for every sample"),
    "saturated_units": Code(saturated_units, Kind.CAUSE, "Bounded units sit at their bounds"),
    "plain_depth": Code(plain_depth, Kind.CAUSE, "Too many layers in a row with no way around them"),
    "learning_rate_too_high": Code(
        learning_rate_too_high, Kind.CAUSE, "The steps are too long: the loss climbs instead of falling"
    ),
    "learning_rate_too_low": Code(learning_rate_too_low, Kind.CAUSE, "The steps are too short to learn anything"),
    "batch_too_small": Code(batch_too_small, Kind.CAUSE, "The batches are too small: their gradients are mostly noise"),
    "exploding_gradient": Code(
        exploding_gradient, Kind.SYMPTOM, "The gradients are out of proportion, overflow, or jump and stay up"
    ),
    "nonfinite_loss": Code(nonfinite_loss, Kind.SYMPTOM, "The loss becomes NaN or infinite"),
    "diverging_loss": Code(diverging_loss, Kind.SYMPTOM, "The loss climbs away from where it began"),
    "oscillating_loss": Code(oscillating_loss, Kind.SYMPTOM, "The loss jumps up and down and gets nowhere"),
    "stalled_loss": Code(stalled_loss, Kind.SYMPTOM, "The loss does not fall"),
    "vanishing_gradient": Code(
        vanishing_gradient, Kind.SYMPTOM, "Next to nothing of the gradient reaches the first layers"
    ),
    "validation_degrading": Code(
        validation_degrading, Kind.SYMPTOM, "The validation loss climbs while the training loss falls"
    ),
}
