"""What a Trace or a probe looks like: each class holds the data of one picture, and draws it when asked."""

from gradrecipes.plots.clipping import ClippedNorms
from gradrecipes.plots.curves import TrainingCurves, TrialCurves
from gradrecipes.plots.heat_map import HeatMap
from gradrecipes.plots.layer_profile import LayerProfile
from gradrecipes.plots.measured import LearningRateRange, NoiseScale
from gradrecipes.plots.search import ParallelCoordinates, SettingImportance, StabilityMap
from gradrecipes.plots.study import StudyPlot

__all__ = [
    "ClippedNorms",
    "HeatMap",
    "LayerProfile",
    "LearningRateRange",
    "NoiseScale",
    "ParallelCoordinates",
    "SettingImportance",
    "StabilityMap",
    "StudyPlot",
    "TrainingCurves",
    "TrialCurves",
]
