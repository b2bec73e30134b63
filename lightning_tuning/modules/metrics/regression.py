"""What a regressor reports on evaluation data."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_tuning.functional.precision import at_least_float32


class RegressionMetrics(Metric):
    """Root mean squared error, mean absolute error and the coefficient of determination R2.

    The two errors are means over all samples and outputs; R2 is ``1 - sum e^2 / sum (y - mean)^2`` of each output,
    averaged over the outputs, and NaN where an output's targets are all equal.

    The spread of the targets is merged batch by batch and rank by rank (Chan et al., 1979). As a difference of sums,
    as ``torchmetrics.R2Score`` takes it, it has no correct digit where the mean is 10,000 times the deviation.

    Args:
        num_outputs: D, the number of values a sample.
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    spread: Tensor
    squared: Tensor
    absolute: Tensor

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        # Unreduced: with several ranks each state gets a dimension of ranks in front.
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx=None)
        for name in ("mean", "spread", "squared", "absolute"):
            self.add_state(name, torch.zeros(num_outputs), dist_reduce_fx=None)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add a batch of values ``[N, D]``."""
        target = at_least_float32(target)
        error = at_least_float32(predicted) - target
        self.squared = self.squared + error.square().sum(dim=0)
        self.absolute = self.absolute + error.abs().sum(dim=0)
        batch_mean = target.mean(dim=0)
        batch = (torch.tensor(len(target), device=target.device), batch_mean, (target - batch_mean).square().sum(dim=0))
        both = zip((self.count, self.mean, self.spread), batch, strict=True)
        self.count, self.mean, self.spread = _merged(*(torch.stack([a.to(b.dtype), b]) for a, b in both))

    def compute(self) -> dict[str, Tensor]:
        """Return the values so far, over all ranks, by name."""
        outputs = self.num_outputs
        count, _, spread = _merged(
            self.count.reshape(-1), self.mean.reshape(-1, outputs), self.spread.reshape(-1, outputs)
        )
        squared, absolute = (s.reshape(-1, outputs).sum(dim=0) for s in (self.squared, self.absolute))
        r2 = (1 - squared / spread).where(spread > 0, float("nan"))
        return {"rmse": (squared / count).mean().sqrt(), "mae": (absolute / count).mean(), "r2": r2.mean()}


def _merged(count: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of all parts together, of those of K parts: ``[K], [K, D], [K, D]``."""
    total = count.sum()
    weights = count.to(mean.dtype)[:, None]
    overall = (weights * mean).sum(dim=0) / total
    return total, overall, spread.sum(dim=0) + (weights * (mean - overall).square()).sum(dim=0)
