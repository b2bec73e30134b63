"""ReMixMatch's state: how often each class is a label, and how often it is predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tuning.functional import align

from .alignments import class_rows
from .ranks import gather_rows
from .step_state import StepState


class DistributionAlignment(StepState):
    """Multiplies predictions by the share of each class among the labels over its share in the last predictions.

    The labels' shares are those of all labels seen, each class counted once more, so that none has the share 0 before
    it is met. The predictions' shares are their mean over the last batches.

    Args:
        num_classes: The number of classes, C.
        window: How many batches the mean of the predictions goes over, this one included, at least 1.

    Source: Berthelot et al., 2020, "ReMixMatch", section 3.1.2 (running average over the last 128 batches).
    """

    predicted: Tensor
    recent: Tensor
    labels: Tensor
    steps: Tensor

    def __init__(self, num_classes: int, window: int = 128) -> None:
        super().__init__()
        self.register_buffer("predicted", torch.zeros(num_classes))  # of the last step
        self.register_buffer("recent", torch.zeros(window, num_classes))  # of the last steps, in turns
        self.register_buffer("labels", torch.ones(num_classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, probabilities: Tensor, target: Tensor, record: bool = True) -> Tensor:
        """The aligned probabilities ``[N, C, ...]``.

        Args:
            probabilities: Predictions on unlabelled inputs, ``[N, C, ...]``.
            target: The labels of the labelled inputs, as probabilities ``[M, C, ...]``.
            record: Whether the batch may move the state; False where a window is passed through again.
        """
        predicted = self.averaged("predicted", gather_rows(class_rows(probabilities)).mean(dim=0), 0.0, record)
        wanted = self.summed("labels", gather_rows(class_rows(target)).sum(dim=0), record)
        # The mean over this step and those that it does not push out of the window.
        turn = torch.arange(len(self.recent), device=self.recent.device)
        stays = ((turn < self.steps) & (turn != self.steps % len(turn))).to(predicted)
        average = (stays @ self.recent + predicted) / (stays.sum() + 1)
        return align(probabilities, wanted / wanted.sum(), average)

    @torch.no_grad()
    def commit(self) -> None:
        if not self._window:
            return
        super().commit()
        self.recent[self.steps % len(self.recent)] = self.predicted
        self.steps += 1
