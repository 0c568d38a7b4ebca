"""What a Trace looks like: each class holds the data of one picture, and draws it when asked."""

from gradrecipes.plots.clipping import ClippedNorms
from gradrecipes.plots.curves import TrainingCurves
from gradrecipes.plots.heat_map import HeatMap
from gradrecipes.plots.layer_profile import LayerProfile

__all__ = ["ClippedNorms", "HeatMap", "LayerProfile", "TrainingCurves"]
