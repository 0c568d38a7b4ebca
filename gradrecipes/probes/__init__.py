"""Measurements that leave a model as it was: which learning rate, which batch size."""

from gradrecipes.probes.learning_rate_range import learning_rate_range
from gradrecipes.probes.noise_scale import noise_scale
from gradrecipes.probes.recurrent import recurrent
from gradrecipes.probes.sharpness import sharpness

__all__ = ["learning_rate_range", "noise_scale", "recurrent", "sharpness"]
