"""Practice 2: judge by data that were not trained on, and compare remedies by the same yardstick."""

from __future__ import annotations

from gradrecipes.callbacks.nanproof_early_stopping import NanProofEarlyStopping
from gradrecipes.recipes.recipe import Planned, Recipe


def validation(*, share: float = 0.2, monitor: str = "val_loss", patience: int = 10) -> Recipe:
    """Return the recipe of experimentation and validation.

    Keras' `validation_split` takes the last samples, before any shuffling: shuffle data that are in an order.

    To compare remedies, take it as an arm of a `gr.Study`, whose own frozen split then stands for `share`: the study
    trains every arm with every seed and says which differences are beyond doubt.

    Args:
        share: Part of the training data that is set aside, between 0 and 1.
        monitor: What decides; a value of the validation data.
        patience: Epochs without improvement before the training stops.

    Raises:
        ValueError: A share that leaves nothing on one side.

    Example:
        >>> validation(share=0.25).fit_arguments()["validation_split"]
        0.25
    """
    if not 0 < share < 1:
        raise ValueError(
            f"`share` must lie between 0 and 1, both excluded. Received: share={share!r}. 0.2 suits most data sets."
        )
    arguments = {"monitor": monitor, "patience": patience, "restore_best_weights": True}
    return Recipe(
        name="validation",
        claim="Validation data show when a remedy moves the training loss only, and keep the best epoch's weights.",
        references=("Prechelt 1998, Early stopping - but when?", "Bouthillier et al. 2021, arXiv 2103.03098"),
        planned_callbacks={"early_stopping": Planned(NanProofEarlyStopping, arguments)},
        fit={"validation_split": share},
    )
