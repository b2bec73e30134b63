"""Which losses each kind of target has."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from lightning_tuning.errors import InvalidValueError, check_choice

ClassificationLossName = Literal["cross_entropy", "bce", "mse", "mae", "focal"]
MultiLabelLossName = Literal["bce", "focal"]
RegressionLossName = Literal["mse", "mae", "huber"]

_NAMES = {
    "multiclass": get_args(ClassificationLossName),
    "multilabel": get_args(MultiLabelLossName),
    "regression": get_args(RegressionLossName),
}
_CALLED_WITH = {
    "multiclass": "logits [N, C] and ids or probabilities",
    "multilabel": "logits [N, C] and targets [N, C]",
    "regression": "predictions [N, D] and targets [N, D]",
}


def check_loss(loss: object, task: str, class_weights: object = None) -> None:
    """Check that ``loss`` is a loss for the task, by name or as a module.

    Raises:
        InvalidValueError: If it is not, or is a module beside which class weights would be lost.
    """
    if isinstance(loss, nn.Module):
        if class_weights is not None:
            raise InvalidValueError(
                f"class_weights is for a loss given by name, and loss is a {type(loss).__name__}: give the weights to "
                "that, or take them away."
            )
        return
    elsewhere = [other for other, names in _NAMES.items() if loss in names]
    if elsewhere and task not in elsewhere:
        raise InvalidValueError(
            f"loss is {loss!r}, a loss of {' and '.join(elsewhere)} targets; for {task} ones it must be one of "
            f"{', '.join(map(repr, _NAMES[task]))}, or an nn.Module called with {_CALLED_WITH[task]}."
        )
    check_choice("loss", loss, _NAMES[task], f"an nn.Module called with {_CALLED_WITH[task]}")
