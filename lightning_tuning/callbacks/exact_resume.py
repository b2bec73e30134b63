"""ExactResume: randomness as a function of counters, so that a resumed run equals the uninterrupted one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning.errors import InvalidValueError

_MASK = (1 << 64) - 1


def mix(*counters: int) -> int:
    """Hash counters to 64 well-mixed bits (a chain of splitmix64 finalisers; Steele, Lea and Flood, 2014)."""
    state = 0
    for counter in counters:
        state = ((state ^ counter) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class ExactResume(Callback):
    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.seed = seed
        self._seed=int(os.environ.get("PL_GLOBAL_SEED",0)) if seed is None else seed

    def on_train_start(self, trainer, pl_module):
        loop = trainer.fit_loop.epoch_loop
        orig = loop.on_run_start
        def f(fetcher):
            self._reseed(trainer, trainer.current_epoch, -1)
            if trainer.current_epoch == 0 or trainer.fit_loop.is_resuming or loop.restarting:
                iter(fetcher)
            orig(fetcher)
        loop.on_run_start = f
    def on_train_epoch_start(self, trainer, pl_module):
        self._reseed(trainer, trainer.current_epoch, -2)
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._reseed(trainer, trainer.current_epoch, batch_idx, trainer.global_rank)
    def _reseed(self, trainer, *c):
        b = mix(self._seed, *[x & _MASK for x in c])
        torch.default_generator.manual_seed(b); random.seed(b); np.random.seed(b>>32)
