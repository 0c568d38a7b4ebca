"""Weights to start from: scaled for their activation, for recurrence, for depth, or by the data.

A bias that starts at zero, and the residual weight of ReZero, are Keras' own `"zeros"`.
"""

from gradrecipes.initializers.delta_orthogonal import DeltaOrthogonal
from gradrecipes.initializers.drawn_anew import DrawnAnew
from gradrecipes.initializers.fixup import Fixup
from gradrecipes.initializers.lsuv import LsuvLayer, LsuvResult, lsuv
from gradrecipes.initializers.preset import ScaledInitializer, gain, preset
from gradrecipes.initializers.recurrent import ChronoBias, chrono_lstm, identity_rnn

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
