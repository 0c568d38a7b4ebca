"""Gradient penalties, which need the tape of a train step.

L1, L2 and the like are `keras.regularizers`; decoupled weight decay is `weight_decay=` of Keras' optimizers.
"""

from gradrecipes.regularizers.input_penalty import (
    InputGradientPenalty,
    R1Penalty,
    WassersteinPenalty,
    interpolate,
    per_sample_gradient_norms,
)
from gradrecipes.regularizers.parameter_penalty import ParameterGradientPenalty, penalized_gradients
from gradrecipes.regularizers.penalty import GradientCombination, Penalty

__all__ = [
    "GradientCombination",
    "InputGradientPenalty",
    "ParameterGradientPenalty",
    "Penalty",
    "R1Penalty",
    "WassersteinPenalty",
    "interpolate",
    "penalized_gradients",
    "per_sample_gradient_norms",
]
