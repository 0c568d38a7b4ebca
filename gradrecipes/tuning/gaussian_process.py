"""Predict with an honest error from a handful of points: a Gaussian process whose parameters have priors.

With the five or ten points that a search begins with, the parameters of largest likelihood are often useless: a side
length without end says that a setting has no effect, and the search never looks there again. With a prior on each, it
takes evidence to say so.

References:
    Rasmussen, Williams 2006, "Gaussian processes for machine learning", chapters 2 and 5; Hvarfner, Hellsten, Nardi
    2024, "Vanilla Bayesian optimization performs great in high dimensions", arXiv 2402.02229, on such priors.
"""

from __future__ import annotations

import math

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
