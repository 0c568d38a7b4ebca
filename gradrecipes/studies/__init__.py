"""Comparative studies: arms and seeds on one frozen split, with intervals and verdicts."""

from __future__ import annotations

from gradrecipes.studies.arm import Arm, Objective, Run
from gradrecipes.studies.judge import ArmSummary, Comparison, StudyTable
from gradrecipes.studies.split import Split, frozen_split
from gradrecipes.studies.study import Study

__all__ = ["Arm", "ArmSummary", "Comparison", "Objective", "Run", "Split", "Study", "StudyTable", "frozen_split"]
