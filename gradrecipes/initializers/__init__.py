"""Weights to start from: scaled for their activation, for recurrence, for depth, or by the data.

A bias that starts at zero, and the residual weight of ReZero, are Keras' own `"zeros"`.
"""

from gradrecipes.initializers.lsuv import LsuvLayer, LsuvResult, lsuv
from gradrecipes.initializers.recurrent import ChronoBias, chrono_lstm, identity_rnn
from gradrecipes.initializers.scaled import DeltaOrthogonal, DrawnAnew, Fixup, ScaledInitializer, gain, preset

__all__ = [
    "ChronoBias",
    "DeltaOrthogonal",
    "DrawnAnew",
    "Fixup",
    "LsuvLayer",
    "LsuvResult",
    "ScaledInitializer",
    "chrono_lstm",
    "gain",
    "identity_rnn",
    "lsuv",
    "preset",
]
