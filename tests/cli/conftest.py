"""Undo what a command does to its process, in which other tests run after it."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _own_log_level():
    logger = logging.getLogger("gradrecipes")
    before = logger.level
    yield
    logger.setLevel(before)
