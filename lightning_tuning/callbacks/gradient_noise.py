"""GradientNoise: annealed normal noise on the gradient."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import add_noise_, noise_std

from ._gradients import GradientCallback, is_logging_step, remaining_scale
from .exact_resume import hash_counters

_PURPOSE = int.from_bytes(b"gradnois", "big")  # keeps its streams apart from ExactResume's of the same seed


class GradientNoise(GradientCallback):
    """Adds normal noise of variance ``eta / (1 + t)^gamma`` to the gradient after clipping (Neelakantan et al., 2015).

    ``t`` counts the optimizer steps; steps that fp16's scaler skips do not count. The noise is a function of the seed,
    ``t`` and the optimizer alone: it is the same on all ranks and in a resumed run, and shifts no other random numbers.
    The standard deviation is logged as ``train/gradient_noise`` at the Trainer's logging steps.

    Args:
        eta: Variance of the noise at the first step, >= 0; the authors choose among 0.01, 0.3 and 1. Off: 0.
        gamma: How fast the variance falls, >= 0; 0 keeps it constant.
        seed: Key of the noise, 0 to 2**64 - 1. None takes the checkpoint's when resuming, else ``PL_GLOBAL_SEED``
            (set by ``seed_everything``), else 0.

    Raises:
        InvalidValueError: If an argument is not allowed.
        MisconfigurationException: When training starts, under strategies that split gradients over the processes.
        NoEffectError: When training starts, if nothing is trained.

    Source: Neelakantan et al., 2015, "Adding gradient noise improves learning for very deep networks".

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientNoise(eta=0.3)], logger=False, accelerator="cpu")
    """

    def __init__(self, eta: float = 0.01, gamma: float = 0.55, seed: int | None = None) -> None:
        super().__init__()
        check_range("eta", eta)
        check_range("gamma", gamma)
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64):
            raise InvalidValueError(f"seed is {seed!r}; it must be an integer from 0 to 2**64 - 1, or None.")
        self.eta = eta
        self.gamma = gamma
        self.seed = seed
        self._key = 0
        self._steps: list[int] = []
        self._noisy: set[int] = set()
        self._generator: torch.Generator | None = None
        self._plugin: Precision | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._key = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
            self._steps = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._key = trainer.strategy.broadcast(self._key)
        self._steps += [0] * (len(trainer.optimizers) - len(self._steps))
        self._generator = None
        self.follow_steps(trainer)
        # No hook comes after clipping: a pre-hook of the optimizer runs before the closure unless there is a scaler.
        self._plugin = plugin = trainer.precision_plugin
        after_closure = partial(self._after_closure, trainer, plugin._after_closure)
        plugin._after_closure = after_closure  # type: ignore[method-assign]

    def _after_closure(
        self, trainer: Trainer, hooks_and_clipping: Callable[..., None], model: LightningModule, optimizer: Optimizer
    ) -> None:
        hooks_and_clipping(model, optimizer)
        index = trainer.optimizers.index(optimizer)
        self._noisy.discard(index)
        gradients = [cast(Tensor, p.grad) for p in self.edited(optimizer)]
        if not gradients:
            return
        self._noisy.add(index)
        step = self._steps[index]
        std = noise_std(step, self.eta, self.gamma)
        if self.eta != 0:
            if self._generator is None or self._generator.device != gradients[0].device:
                self._generator = torch.Generator(gradients[0].device)
            self._generator.manual_seed(hash_counters(self._key, _PURPOSE, step, index))
            add_noise_(gradients, std, self._generator, remaining_scale(trainer, optimizer, gradients[0]))
        if is_logging_step(trainer):
            self.add_term(trainer, optimizer, "gradient_noise", std)

    def _on_step(self, index: int) -> None:
        self._steps[index] += index in self._noisy

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._key, "steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = list(state_dict["steps"])
        if self.seed is None:
            self._key = state_dict["seed"]
        elif self.seed != state_dict["seed"]:
            rank_zero_warn(
                f"GradientNoise(seed={self.seed}) resumes a run of seed {state_dict['seed']}: its noise will differ "
                f"from the uninterrupted run's. Write seed={state_dict['seed']} or leave the seed out."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._plugin is not None:
            del self._plugin._after_closure
        self._plugin = None
