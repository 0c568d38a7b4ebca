"""No finding contradicts another one, the table of variations, or the net that it is about."""

from __future__ import annotations

import pytest

from gradrecipes.diagnosis.engine import find
from tests.diagnosis import hand_made
from tests.diagnosis.contradictions import contradictions


@pytest.mark.parametrize("name", hand_made.TRACES)
def test_the_words_of_a_diagnosis_agree(name, trace_of):
    trace = trace_of(name)
    assert contradictions(tuple(find(trace)), trace) == []
