"""One training step, gone through layer by layer: where did the first value go wrong?"""

from gradrecipes.training.autopsy.examination import autopsy

__all__ = ["autopsy"]
