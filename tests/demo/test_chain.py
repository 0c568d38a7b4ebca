from __future__ import annotations

import numpy as np
import pytest

from gradrecipes.demo import WEIGHT, run_chain


@pytest.fixture(scope="module", params=[20, 50])
def chain(request):
    return run_chain(request.param)


def test_theory_and_measurement_agree_to_five_digits(chain):
    assert chain.predicted == pytest.approx(WEIGHT ** (chain.layers - 1), rel=1e-12)
    assert chain.measured == pytest.approx(chain.predicted, rel=1e-5)


def test_the_clipped_step_has_the_norm_of_the_bound(chain):
    assert chain.clipped_update == pytest.approx(1.0, rel=1e-5)


def test_the_textbook_numbers():
    assert pytest.approx(1.0354e7, rel=1e-4) == WEIGHT**19
    assert np.float32(WEIGHT**49) < np.finfo(np.float32).max
