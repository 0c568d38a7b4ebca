"""Detect, explain, prevent and recover from exploding gradients in Keras 3."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Trace": "gradrecipes.core.trace",
    "Event": "gradrecipes.core.trace.trace",
    "Finding": "gradrecipes.core.findings",
    "Prescription": "gradrecipes.core.findings",
    "Diagnosis": "gradrecipes.report.diagnosis",
    "diagnose": "gradrecipes.doctor",
    "Doctor": "gradrecipes.callbacks.doctor",
    "GradientMonitor": "gradrecipes.callbacks.gradient_monitor",
    "GradientGuard": "gradrecipes.callbacks.gradient_guard",
    "TrainingStoppedError": "gradrecipes.training.recovery.policy",
    "ClippingReport": "gradrecipes.core.analysis.clipping_report",
    "clipping_report": "gradrecipes.core.analysis.clipping_report",
    "BlackBox": "gradrecipes.callbacks.black_box",
    "Autopsy": "gradrecipes.core.trace.autopsy",
    "Offender": "gradrecipes.core.trace.autopsy",
    "autopsy": "gradrecipes.training.autopsy",
    "BatchSizeAdvisor": "gradrecipes.callbacks.batch_size_advisor",
    "LearningRateFinder": "gradrecipes.callbacks.learning_rate_finder",
    "NanProofEarlyStopping": "gradrecipes.callbacks.nanproof_early_stopping",
    "RecipeModel": "gradrecipes.training.step.recipe_model",
    "RecipeModelMixin": "gradrecipes.training.step.recipe_model",
    "GradientPipeline": "gradrecipes.training.step.gradient_pipeline",
    "Study": "gradrecipes.studies.study",
}
_SUBPACKAGES = {
    "recipes": "gradrecipes.recipes",
    "clipping": "gradrecipes.gradients.clipping",
    "plots": "gradrecipes.plots",
    "initializers": "gradrecipes.initializers",
    "layers": "gradrecipes.layers",
    "probes": "gradrecipes.probes",
    "regularizers": "gradrecipes.regularizers",
    "rescue": "gradrecipes.rescue",
    "schedules": "gradrecipes.schedules",
    "studies": "gradrecipes.studies",
    "tuning": "gradrecipes.tuning",
}

__all__ = [*_PUBLIC, *_SUBPACKAGES, "__version__"]

if TYPE_CHECKING:
    from gradrecipes import (
        initializers,
        layers,
        plots,
        probes,
        recipes,
        regularizers,
        rescue,
        schedules,
        studies,
        tuning,
    )
    from gradrecipes.callbacks.batch_size_advisor import BatchSizeAdvisor
    from gradrecipes.callbacks.black_box import BlackBox
    from gradrecipes.callbacks.doctor import Doctor
    from gradrecipes.callbacks.gradient_guard import GradientGuard
    from gradrecipes.callbacks.gradient_monitor import GradientMonitor
    from gradrecipes.callbacks.learning_rate_finder import LearningRateFinder
    from gradrecipes.callbacks.nanproof_early_stopping import NanProofEarlyStopping
    from gradrecipes.core.analysis.clipping_report import ClippingReport, clipping_report
    from gradrecipes.core.findings import Finding, Prescription
    from gradrecipes.core.trace import Trace
    from gradrecipes.core.trace.autopsy import Autopsy, Offender
    from gradrecipes.core.trace.trace import Event
    from gradrecipes.doctor import diagnose
    from gradrecipes.gradients import clipping
    from gradrecipes.report.diagnosis import Diagnosis
    from gradrecipes.studies.study import Study
    from gradrecipes.training.autopsy import autopsy
    from gradrecipes.training.recovery.policy import TrainingStoppedError
    from gradrecipes.training.step.gradient_pipeline import GradientPipeline
    from gradrecipes.training.step.recipe_model import RecipeModel, RecipeModelMixin


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(_SUBPACKAGES[name])
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"gradrecipes has no {name!r}. It has: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
