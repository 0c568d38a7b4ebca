"""What was found, for people and programs: plain text, terminal, HTML, JSON."""

from gradrecipes.report.diagnosis import Diagnosis

__all__ = ["Diagnosis"]
