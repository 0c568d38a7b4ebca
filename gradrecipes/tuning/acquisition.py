"""Where a Bayesian search looks next: where much is expected of a success, and a success is to be expected.

Two models over the unit cube of the space. One of the scores, learned from successes only: a penalty in it would bend
the model exactly where the best settings usually lie, close to the edge of divergence. And one of success itself,
learned from all trials. Proposed is the candidate with the largest product of expected improvement and probability of
success. Far from all trials that probability is a half, however many have failed: failures tell of their neighbourhood.
As long as hardly anything has succeeded, the severity of the failures shows the way out.

References:
    Gelbart, Snoek, Adams 2014, "Bayesian optimization with unknown constraints", arXiv 1403.5607; Jones, Schonlau,
    Welch 1998, "Efficient global optimization of expensive black-box functions".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Priors: mean and standard deviation of the natural logarithm.
SIDE = (math.log(0.5), 0.8)  # length over which values differ, as a share of the side of the unit cube
AMPLITUDE = (0.0, 1.0)  # variance of the values, which are standardized
NOISE = (math.log(1e-3), 2.0)  # variance of noise in them
FARTHEST = 3.0  # standard deviations of the prior, beyond which a parameter is not looked for
STARTS = 3  # of the search for the parameters
MOST_ITERATIONS = 60
JITTER = 1e-8
FAILED_OBJECTIVE = 1e10  # where the matrix cannot be factored


class GaussianProcess:
    """Give mean and deviation of a function anywhere in the unit cube, from its values at some points.

    Matern kernel of order 5/2 with a side length for each setting; of a setting without order it only counts whether
    two values are the same. The parameters are those of the largest posterior probability.

    Args:
        points: float64 `[points, settings]`, in the unit cube.
        values: float64 `[points]`.
        unordered: bool `[settings]`, whose values have no order.
        standardize: Whether far from all points the mean of the values is expected, and not 0.
        noise: Mean and standard deviation of the logarithm of the variance of noise.
        random: Draws where the search for the parameters starts.

    Example:
        >>> points = np.linspace(0, 1, 7)[:, None]
        >>> model = GaussianProcess(points, np.sin(6 * points[:, 0]), random=np.random.default_rng(0))
        >>> mean, deviation = model.predict(np.array([[0.25], [0.6]]))
        >>> bool((np.abs(mean - np.sin([1.5, 3.6])) < 0.05).all())
        True
    """

    def __init__(
        self,
        points: np.ndarray,
        values: np.ndarray,
        *,
        unordered: np.ndarray | None = None,
        standardize: bool = True,
        noise: tuple[float, float] = NOISE,
        random: np.random.Generator,
    ):
        settings = points.shape[1]
        self._points = points
        self._unordered = np.zeros(settings, bool) if unordered is None else unordered
        self._middle = float(values.mean()) if standardize else 0.0
        self._scale = (float(values.std()) or 1.0) if standardize else 1.0
        self._values = (values - self._middle) / self._scale
        self._squares = self._squared_differences(points, points)
        priors = np.array([SIDE] * settings + [AMPLITUDE, noise])
        self._centre, self._spread = priors[:, 0], priors[:, 1]
        self._parameters = self._most_probable(random)
        kernel = _matern(self._squares, self._parameters)[0]
        self._factor, self._weights = self._solve(kernel, self._parameters)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the function, without noise, float64 `[points]` each."""
        from scipy.linalg import solve_triangular

        kernel = _matern(self._squared_differences(points, self._points), self._parameters)[0]
        explained = solve_triangular(self._factor, kernel.T, lower=True)
        variance = np.exp(self._parameters[-2]) - np.square(explained).sum(0)
        deviation = np.sqrt(np.maximum(variance, 1e-12))
        return self._middle + self._scale * (kernel @ self._weights), self._scale * deviation

    def _squared_differences(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        squares = np.square(some[:, None, :] - others[None])
        return np.where(self._unordered, squares > 1e-12, squares)

    def _solve(self, kernel: np.ndarray, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.linalg import cho_solve, cholesky

        factor = cholesky(kernel + (np.exp(parameters[-1]) + JITTER) * np.eye(len(kernel)), lower=True)
        return factor, cho_solve((factor, True), self._values)

    def _most_probable(self, random: np.random.Generator) -> np.ndarray:
        from scipy.optimize import minimize

        lowest, highest = (self._centre + sign * FARTHEST * self._spread for sign in (-1, 1))
        starts = [self._centre, *(random.normal(self._centre, self._spread) for _ in range(STARTS - 1))]
        found = [
            minimize(
                self._objective,
                np.clip(start, lowest, highest),
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(lowest, highest, strict=True)),
                options={"maxiter": MOST_ITERATIONS},
            )
            for start in starts
        ]
        return min(found, key=lambda one: one.fun).x

    def _objective(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative logarithm of the posterior, up to a constant, and its gradient."""
        from scipy.linalg import cho_solve

        kernel, slope = _matern(self._squares, parameters)
        try:
            factor, weights = self._solve(kernel, parameters)
        except np.linalg.LinAlgError:
            return FAILED_OBJECTIVE, np.zeros_like(parameters)
        inverse = cho_solve((factor, True), np.eye(len(kernel)))
        outer = 0.5 * (inverse - np.outer(weights, weights))
        sides = np.einsum("ij,ijk->k", outer * slope, self._squares) * np.exp(-2 * parameters[:-2])
        gradient = np.r_[sides, (outer * kernel).sum(), np.trace(outer) * np.exp(parameters[-1])]
        away = (parameters - self._centre) / self._spread
        value = 0.5 * self._values @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        return float(value), gradient + away / self._spread


def _matern(squares: np.ndarray, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel, and its derivative by the logarithm of a side, over that setting's share of the distance."""
    distance = math.sqrt(5.0) * np.sqrt(squares @ np.exp(-2 * parameters[:-2]))
    decay = np.exp(parameters[-2] - distance)
    return (1 + distance + np.square(distance) / 3) * decay, 5 / 3 * (1 + distance) * decay


CANDIDATES = 1024  # points drawn over the whole space
NEAR_BEST = 256  # points drawn about each of the best trials
BEST = 3  # trials about which is searched more closely
NEIGHBOURHOOD = 0.08  # standard deviation of those points, as a share of the side
OTHER_CHOICE = 0.2  # share of those points that have another value of a setting without order
FEWEST_SUCCESSES = 3  # from which on the scores are modelled
LEAST_CHANCE = 0.3  # of success, that a candidate must have as long as another has: what is unknown promises much
WINSOR = 3.0  # times the distance from best to median, beyond which a bad success is as bad as any
CHANCE_NOISE = (np.log(0.05), 1.0)  # of success, which is 1 or -1, as for `GaussianProcess`


def rank_candidates(
    points: np.ndarray,
    losses: np.ndarray,
    severities: np.ndarray,
    *,
    random: np.random.Generator,
    pending: np.ndarray | None = None,
    unordered: np.ndarray | None = None,
    snap: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return candidates, the most promising first, float64 `[candidates, settings]`, in the unit cube.

    Args:
        points: float64 `[trials, settings]`, in the unit cube.
        losses: float64 `[trials]`, the scores, less is better; NaN for trials that failed.
        severities: float64 `[trials]`, 0 to 1 for trials that failed; NaN for others.
        random: Draws the candidates.
        pending: float64 `[running, settings]`, trials whose outcome is not known yet.
        unordered: bool `[settings]`, whose values have no order.
        snap: Moves points to where a trial can be: the settings that are not continuous.
    """
    from threadpoolctl import threadpool_limits

    unordered = np.zeros(points.shape[1], bool) if unordered is None else unordered
    candidates = _draw(points, losses, unordered, random)
    if snap is not None:
        candidates = random.permutation(np.unique(snap(candidates), axis=0))
    with threadpool_limits(1):  # for matrices this small, threads only wait for each other
        promise = _promise(candidates, points, losses, severities, pending, unordered, random)
    return candidates[np.argsort(-promise, kind="stable")]


def _promise(candidates, points, losses, severities, pending, unordered, random) -> np.ndarray:
    def fitted(at, values, **settings):
        return GaussianProcess(at, values, unordered=unordered, random=random, **settings)

    alive = np.isfinite(losses)
    if alive.sum() < FEWEST_SUCCESSES:
        # Severity of a failure, and nothing for a success: downhill lies the region that trains.
        known, values = _with_pending(points, np.where(alive, 0.0, severities), pending, fitted)
        mean, deviation = fitted(known, values).predict(candidates)
        return deviation - mean
    known, values = _with_pending(points[alive], _winsorized(losses[alive]), pending, fitted)
    mean, deviation = fitted(known, values).predict(candidates)
    gain = expected_improvement(mean, deviation, float(values.min()))
    if alive.all():
        return gain
    success = fitted(points, np.where(alive, 1.0, -1.0), standardize=False, noise=CHANCE_NOISE)
    chance = chance_above_zero(*success.predict(candidates))
    return np.where(chance >= LEAST_CHANCE, gain * chance, gain.min() * chance)


def evenly_spread(number: int, settings: int, *, seed: int) -> np.ndarray:
    """Return a point of a sequence that leaves no holes in the unit cube, float64 `[settings]`: Sobol's, scrambled.

    Example:
        >>> points = np.stack([evenly_spread(one, 1, seed=0) for one in range(4)])
        >>> np.sort((4 * points[:, 0]).astype(int))
        array([0, 1, 2, 3])
    """
    from scipy.stats import qmc

    return qmc.Sobol(settings, seed=seed).random_base2(number.bit_length())[number]


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


def chance_above_zero(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return the probability that a normal variable, observed with the noise of success, is positive.

    Example:
        >>> chance_above_zero(np.array([0.0, 1.0]), np.array([1.0, 0.1])).round(2)
        array([0.5, 1. ])
    """
    from scipy.stats import norm

    return norm.cdf(mean / np.sqrt(np.square(deviation) + np.exp(CHANCE_NOISE[0])))


def _draw(points: np.ndarray, losses: np.ndarray, unordered: np.ndarray, random: np.random.Generator) -> np.ndarray:
    settings = points.shape[1]
    drawn = [random.uniform(size=(CANDIDATES, settings))]
    best = np.argsort(np.where(np.isfinite(losses), losses, np.inf))[: min(BEST, int(np.isfinite(losses).sum()))]
    for one in best:
        near = points[one] + random.normal(scale=NEIGHBOURHOOD, size=(NEAR_BEST, settings))
        other = random.uniform(size=near.shape)
        kept = np.where(random.uniform(size=near.shape) < OTHER_CHOICE, other, points[one])
        drawn.append(np.where(unordered, kept, near))
    return np.clip(np.concatenate(drawn), 0.0, 1.0)


def _with_pending(points, values, pending, fitted) -> tuple[np.ndarray, np.ndarray]:
    """Add running trials as if each had brought what is expected of it: not all workers are to go to one place."""
    if pending is None or not len(pending):
        return points, values
    expected, _ = fitted(points, values).predict(pending)
    return np.concatenate([points, pending]), np.concatenate([values, expected])


def _winsorized(losses: np.ndarray) -> np.ndarray:
    best, middle = float(losses.min()), float(np.median(losses))
    return np.minimum(losses, middle + WINSOR * (middle - best)) if middle > best else losses
