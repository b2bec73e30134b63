"""AdaptiveGradientClipping: no unit's gradient larger than a share of its weights."""

from __future__ import annotations

import re
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import adaptive_clip_

from ._gradients import GradientCallback, is_logging_step, remaining_scale


class AdaptiveGradientClipping(GradientCallback):
    """Clips each unit's gradient relative to the norm of the unit's weights (Brock et al., 2021).

    Where ``||g|| > clip * max(||w||, eps)``, the unit's gradient is scaled down to that norm. A unit is a row of a
    weight (all that leads to one output); a bias or another vector is one unit. It acts once an optimizer step, on
    the accumulated, reduced and unscaled gradient, before the Trainer's ``gradient_clip_val``, which then clips the
    norm of what is left; callbacks that edit gradients act in the order of the list. The share of units that it
    clipped is logged as ``train/adaptive_gradient_clipping`` at the Trainer's logging steps.

    Args:
        clip: Largest ratio of the norms of gradient and weights, > 0: 0.01 to 0.16; the smaller, the larger the batch
            and the stronger the augmentation.
        eps: Least norm that weights count with, > 0, so that units at zero can move.
        exclude: Regular expression; parameters in whose names it is found are left out. ``none`` leaves out nothing.
            Null leaves out the classifier head, as the authors do: the module that owns the last trained parameter of
            two or more dimensions, in the order in which modules were assigned. Its name is printed when training
            starts.

    Raises:
        InvalidValueError: If an argument is not allowed; when training starts, if ``exclude`` matches no parameter.
        NoEffectError: When training starts, if every trained parameter is left out.
        MisconfigurationException: When training starts, under strategies that split gradients over the processes.

    Source: Brock, De, Smith and Simonyan, 2021, "High-performance large-scale image recognition without normalization",
    equation 3 and section 4.1; vectors as one unit and ``eps`` as in the authors' code.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> agc = AdaptiveGradientClipping(clip=0.02, exclude="^head|bias$")
        >>> trainer = Trainer(callbacks=[agc], logger=False, accelerator="cpu")
    """

    clips = True
    nothing = "trains no parameter that is not left out (by default the classifier head is; exclude='none' clips all)"

    def __init__(self, clip: float = 0.01, eps: float = 1e-3, exclude: str | None = None) -> None:
        super().__init__()
        check_range("clip", clip, open_low=True)
        check_range("eps", eps, open_low=True)
        try:
            re.compile(exclude or "")
        except (re.error, TypeError) as error:
            raise InvalidValueError(
                f"exclude is {exclude!r}, which is no regular expression ({error}). "
                "Write one, e.g. '^head', or 'none', or leave it out."
            ) from error
        self.clip = clip
        self.eps = eps
        self.exclude = exclude
        self._left_out: set[nn.Parameter] = set()
        self._seen: set[nn.Parameter] = set()

    def _acts_on(self, parameter: nn.Parameter) -> bool:
        return parameter not in self._left_out

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = self._choose(trainer, pl_module)
        if names:
            rank_zero_info(f"AdaptiveGradientClipping leaves out {', '.join(names)}.")
        elif self.exclude not in (None, "none"):
            raise InvalidValueError(
                f"exclude is {self.exclude!r}, which is found in no parameter name of {type(pl_module).__name__}: "
                f"{', '.join(n for n, _ in pl_module.named_parameters())}. Write 'none' to leave out nothing."
            )
        super().on_fit_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = self.edited(optimizer)
        if not self._seen.issuperset(parameters):  # some were added or unfrozen
            self._choose(trainer, pl_module)
            parameters = self.edited(optimizer)
        if not parameters:
            return
        gradients = [cast(Tensor, p.grad) for p in parameters]
        weights = [p.detach() for p in parameters]
        scale = remaining_scale(trainer, optimizer, gradients[0])
        factors = adaptive_clip_(gradients, weights, self.clip, self.eps, scale)
        if is_logging_step(trainer):
            clipped = torch.cat([f.flatten() for f in factors]) < 1
            self.add_term(trainer, optimizer, "adaptive_gradient_clipping", clipped.float().mean())

    def _choose(self, trainer: Trainer, module: LightningModule) -> list[str]:
        """Look up which parameters are left out; their names."""
        trained = {p for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
        named = {name.replace("_orig_mod.", ""): p for name, p in module.named_parameters(remove_duplicate=False)}
        named = {name: p for name, p in named.items() if p in trained}
        if self.exclude is None:
            names = _head(named)
        else:
            names = [name for name in named if self.exclude != "none" and re.search(self.exclude, name)]
        self._left_out = {named[name] for name in names}
        self._seen = trained
        return names


def _head(named: dict[str, nn.Parameter]) -> list[str]:
    """The names of the classifier head's parameters."""
    last = next((name for name in reversed(named) if named[name].ndim >= 2 and named[name].requires_grad), "")
    # A parametrized layer keeps its weight in a submodule of this name.
    owner = last.split(".parametrizations.")[0] if ".parametrizations." in last else last.rpartition(".")[0]
    return [name for name in named if name == last or (owner and name.startswith(f"{owner}."))]
