"""What the guards' tests have in common: a module and batches that go wrong when they are told to."""

from __future__ import annotations

import copy
import json

import lightning.pytorch as pl
import torch

from tests.contract.nets import Host

HOW = ("input", "loss", "constant", "gradient")


class Frail(Host):
    """A host whose loss a batch can break: ``poison`` says how."""

    poison: str | None = None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if loss is None or self.poison is None:
            return loss
        value = loss["loss"] if isinstance(loss, dict) else loss
        broken = {"loss": value * float("inf"), "constant": value + float("inf"), "large": 100 * value}
        return broken.get(self.poison, loss)


class Poison(pl.Callback):
    """Breaks chosen batches, counted over the whole run, and keeps the state before and after each.

    Args:
        at: The batches' numbers.
        how: ``input``: NaN in the input; ``loss``: an infinite loss; ``constant``: an infinite loss whose gradient is
            finite; ``gradient``: a NaN in the gradient; ``large``: the loss times 100.
        rank: The only rank on which they are broken.
    """

    def __init__(self, *at: int, how: str = "input", rank: int | None = None) -> None:
        self.at, self.how, self.rank = at, how, rank
        self.states: list[dict] = []
        self.after: list[dict] = []
        self._now = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        self._now = number in self.at and self.rank in (None, trainer.global_rank)
        self.states.append(state_of(trainer))
        if self.how not in ("input", "gradient"):
            pl_module.poison = self.how if self._now else None
        if self._now and self.how == "input":
            (batch["labeled"] if isinstance(batch, dict) else batch)[0].fill_(float("nan"))

    def on_after_backward(self, trainer, pl_module):
        if self._now and self.how == "gradient":
            next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.after.append(state_of(trainer))


def state_of(trainer) -> dict:
    """Weights, buffers and the optimizer's state."""
    weights = {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}
    return {"module": weights, "optimizer": copy.deepcopy(trainer.optimizers[0].state_dict()["state"])}


def lines(folder) -> list[dict]:
    """What was written about bad batches."""
    path = folder / "bad_batches.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def all_finite(net) -> bool:
    return all(torch.isfinite(value).all() for value in net.state_dict().values())
