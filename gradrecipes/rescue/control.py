"""Judge the training as it is: whether it fails, and whether it only seems to learn."""

from __future__ import annotations

import math

from gradrecipes.rescue.arm import Result
from gradrecipes.rescue.lab import Lab
from gradrecipes.rescue.task import OWN_LOSS

HALF = 0.5  # share of the training at which one ends that stands still
FINAL_PEAK = 10.0  # highest loss over the first from which on a run that ends well is said to have spiked


class Control:
    """Train the user's own setup, and say how it does.

    Args:
        lab: Trains the arms.

    Attributes:
        checkpoints: Its results, ever later ones.
        fails: Whether it breaks, does not learn, or gets worse late.
        doubtful: Whether it learns by its score, but not by its own loss.
    """

    def __init__(self, lab: Lab):
        self.lab = lab
        self.checkpoints: list[Result] = []
        self.fails = self.doubtful = False

    @property
    def last(self) -> Result | None:
        """What it came to, as far as it was trained."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def learned_early(self) -> bool:
        """Whether it learned before its last checkpoint."""
        return any(self.lab.learns(one) for one in self.checkpoints[:-1])

    def train(self, *shares: float, stoppable: bool) -> None:
        """Train to the end, but no further than it is broken or, where a cause was found, stands still."""
        for share in sorted({*shares, max(*shares, HALF), 1.0}):
            self.checkpoints.append(self.lab.run((), share=share, part="control"))
            if self.checkpoints[-1].error or self.checkpoints[-1].broken is not None:
                break
            if stoppable and share >= HALF and self._stands_still():
                break
        last = self.checkpoints[-1]
        self.fails = self._fails(1.0 if stoppable else 0.0) and (stoppable or not self.lab.fits(last))
        self.doubtful = not self.fails and self.lab.is_above_baseline(last)

    def at(self, share: float, seed: int = 0) -> Result:
        """Return it after a share of the training, trained further where it was stopped before."""
        result = self.lab.run((), seed=seed, share=share, part="control" if seed == 0 else "other seeds")
        if seed == 0 and result.steps > self.checkpoints[-1].steps:
            self.checkpoints.append(result)
        return result

    def _stands_still(self) -> bool:
        learned = any(self.lab.learns(one, standard_errors=1.0) for one in self.checkpoints)
        return not learned and not self.checkpoints[-1].falls

    def _fails(self, standard_errors: float) -> bool:
        """Return whether the training as it is fails; a few samples held back prove that of no training by themselves.

        Args:
            standard_errors: By which its score has to be above the baseline; 0 where the diagnosis found nothing
                either.
        """
        last = self.checkpoints[-1]
        if last.error or last.broken is not None or not math.isfinite(last.loss):
            return True
        if self.lab.task.kind == OWN_LOSS:
            return last.peak > FINAL_PEAK and last.score.value < -0.5
        # A score that gets worse while the training loss falls on is overfitting.
        worse = [one for one in self.checkpoints[:-1] if self.lab.better(one.score, last.score)]
        late = any(not last.loss < one.loss for one in worse)
        return late or not self.lab.learns(last, standard_errors=standard_errors)
