"""Where a Bayesian search looks next: where much is expected of a success, and a success is to be expected.

Two models over the unit cube of the space. One of the scores, learned from successes only: a penalty in it would bend
the model exactly where the best settings usually lie, close to the edge of divergence. And one of success itself,
learned from all trials. Proposed is the candidate with the largest product of expected improvement and probability of
success. As long as hardly anything has succeeded, the severity of the failures shows the way out.

References:
    Gelbart, Snoek, Adams 2014, "Bayesian optimization with unknown constraints", arXiv 1403.5607; Jones, Schonlau,
    Welch 1998, "Efficient global optimization of expensive black-box functions".
"""

from __future__ import annotations

import warnings

import numpy as np

CANDIDATES = 1024  # points drawn over the whole space
NEAR_BEST = 256  # points drawn about each of the best trials
BEST = 3  # trials about which is searched more closely
NEIGHBOURHOOD = 0.08  # standard deviation of those points, as a share of the side
FEWEST_SUCCESSES = 3  # from which on the scores are modelled
LEAST_CHANCE = 0.3  # of success, that a candidate must have as long as another has: what is unknown promises much
WINSOR = 3.0  # times the distance from best to median, beyond which a bad success is as bad as any


def rank_candidates(
    points: np.ndarray,
    losses: np.ndarray,
    severities: np.ndarray,
    *,
    pending: np.ndarray | None = None,
    random: np.random.Generator,
) -> np.ndarray:
    """Return candidates, the most promising first, float64 `[candidates, settings]`, in the unit cube.

    Args:
        points: float64 `[trials, settings]`, in the unit cube.
        losses: float64 `[trials]`, the scores, less is better; NaN for trials that failed.
        severities: float64 `[trials]`, 0 to 1 for trials that failed; NaN for others.
        pending: float64 `[running, settings]`, trials whose outcome is not known yet.
        random: Draws the candidates.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # for matrices this small, threads only wait for each other
        return _ranked(points, losses, severities, pending, random)


def _ranked(points, losses, severities, pending, random) -> np.ndarray:
    candidates = _draw(points, losses, random)
    alive = np.isfinite(losses)
    if alive.sum() < FEWEST_SUCCESSES:
        # Severity of a failure, and nothing for a success: downhill lies the region that trains.
        model = _fitted(points, np.where(alive, 0.0, severities), random)
        mean, deviation = model.predict(candidates, return_std=True)
        return candidates[np.argsort(mean - deviation, kind="stable")]
    chance = _chance_of_success(points, alive, candidates, random)
    known, values = points[alive], _winsorized(losses[alive])
    if pending is not None and len(pending):
        # As if each had brought what is expected of it, so that not all workers are sent to one place.
        expected = _fitted(known, values, random).predict(pending)
        known, values = np.concatenate([known, pending]), np.concatenate([values, expected])
    mean, deviation = _fitted(known, values, random).predict(candidates, return_std=True)
    gain = expected_improvement(mean, deviation, float(values.min()))
    promise = np.where(chance >= LEAST_CHANCE, gain * chance, gain.min() * chance)
    return candidates[np.argsort(-promise, kind="stable")]


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """Return by how much a normal variable is expected to fall below the best value so far.

    Example:
        >>> expected_improvement(np.array([0.0]), np.array([1.0]), 0.0).round(4)
        array([0.3989])
    """
    from scipy.stats import norm

    deviation = np.maximum(deviation, 1e-12)
    z = (best - mean) / deviation
    return (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)


def _draw(points: np.ndarray, losses: np.ndarray, random: np.random.Generator) -> np.ndarray:
    settings = points.shape[1]
    drawn = [random.uniform(size=(CANDIDATES, settings))]
    best = np.argsort(np.where(np.isfinite(losses), losses, np.inf))[: min(BEST, int(np.isfinite(losses).sum()))]
    drawn += [points[one] + random.normal(scale=NEIGHBOURHOOD, size=(NEAR_BEST, settings)) for one in best]
    return np.clip(np.concatenate(drawn), 0.0, 1.0)


def _chance_of_success(
    points: np.ndarray, alive: np.ndarray, candidates: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    if alive.all():
        return np.ones(len(candidates))
    from scipy.stats import norm

    mean, deviation = _fitted(points, np.where(alive, 1.0, -1.0), random).predict(candidates, return_std=True)
    return norm.cdf(mean / np.sqrt(np.square(deviation) + 0.05))


def _winsorized(losses: np.ndarray) -> np.ndarray:
    best, middle = float(losses.min()), float(np.median(losses))
    return np.minimum(losses, middle + WINSOR * (middle - best)) if middle > best else losses


def _fitted(points: np.ndarray, values: np.ndarray, random: np.random.Generator):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    sides = np.full(points.shape[1], 0.3)
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(sides, (0.05, 5.0), nu=2.5) + WhiteKernel(1e-2, (1e-5, 0.3))
    model = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=2, random_state=int(random.integers(2**31))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a side length at its bound: the setting has no effect
        return model.fit(points, values)
