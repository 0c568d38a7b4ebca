"""Handwritten digits, 1797 images of 8 x 8 pixels, as scikit-learn ships them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Training and test images, float32 `[n, 64]` from 0 to 1, with their labels, int64 `[n]`."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits(*, seed: int = 0) -> Digits:
    """Return the digits, a quarter of them set aside for testing, stratified by label.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "The demo trains on scikit-learn's digits, and scikit-learn is not installed. "
            "Install it with: pip install 'gradrecipes[demo]'"
        ) from error
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=seed)
    return Digits(x_train, y_train, x_test, y_test)
