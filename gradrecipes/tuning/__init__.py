"""Hyperparameter searches on keras-tuner that survive divergence and learn from it."""

from gradrecipes.tuning import spaces
from gradrecipes.tuning.hypermodel import RecipeHyperModel
from gradrecipes.tuning.jobs import JobResult, is_worker, read_jobs, run_jobs
from gradrecipes.tuning.launcher import Launched, LaunchError, Worker, launch
from gradrecipes.tuning.results import SearchResults
from gradrecipes.tuning.tuners import (
    TUNERS,
    BayesianOptimization,
    GridSearch,
    Hyperband,
    RandomSearch,
    SearchError,
    SurvivingTuner,
)
from gradrecipes.tuning.watch import OptunaPruning

__all__ = [
    "TUNERS",
    "BayesianOptimization",
    "GridSearch",
    "Hyperband",
    "JobResult",
    "LaunchError",
    "Launched",
    "OptunaPruning",
    "RandomSearch",
    "RecipeHyperModel",
    "SearchError",
    "SearchResults",
    "SurvivingTuner",
    "Worker",
    "is_worker",
    "launch",
    "read_jobs",
    "run_jobs",
    "spaces",
]
