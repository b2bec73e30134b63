"""GradientCentralization: gradients of mean zero."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning.functional import centralize_

from ._gradients import GradientCallback


class GradientCentralization(GradientCallback):
    """Takes from each weight's gradient its mean over the inputs of the unit (Yong et al., 2020).

    The gradient of every parameter with two or more dimensions loses its mean over all dimensions but the first, so
    the sum of the weights into an output unit stays as it began. Biases and the scales of norm layers are left alone.
    It acts once an optimizer step, on the accumulated and reduced gradient, before the Trainer's clipping; callbacks
    that edit gradients act in the order of the list.

    Args:
        conv_only: Whether only convolutions are centralized, that is, parameters of three or more dimensions.

    Raises:
        NoEffectError: When training starts, if no trained parameter has that many dimensions.
        MisconfigurationException: When training starts, under strategies that split gradients over the processes.

    Source: Yong, Huang, Hua and Zhang, 2020, "Gradient centralization", equation 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientCentralization()], logger=False, accelerator="cpu")
    """

    def __init__(self, conv_only: bool = False) -> None:
        super().__init__()
        self.conv_only = conv_only

    @property
    def nothing(self) -> str:  # type: ignore[override]
        dimensions = "three or more dimensions (conv_only is true)" if self.conv_only else "two or more dimensions"
        return f"trains no parameter of {dimensions}"

    def _acts_on(self, parameter: nn.Parameter) -> bool:
        return parameter.ndim > (2 if self.conv_only else 1)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if gradients := [cast(Tensor, p.grad) for p in self.edited(optimizer)]:
            centralize_(gradients)
