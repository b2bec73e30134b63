"""Every technique that MicroBatch does not refuse: a batch in parts gives the whole batch's gradient."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from lightning_tuning.callbacks import MicroBatch

from .nets import loaders, make, trainer
from .settings import ROWS, SETTINGS
from .test_contract import assert_close

DIVISIBLE = [mixin.stem for mixin in SETTINGS if not mixin.whole_batch]
RANDOM = {
    "weight_noise": "the noise of the weights is drawn once a forward pass",
    "dropout": "masks",
    "stochastic_depth": "masks",
    "cutout": "places",
}
"""Techniques whose draw for a sample is not made of its values alone below: the parts are another draw."""
ALIKE = [stem for stem in DIVISIBLE if stem not in RANDOM]


class Gradient(pl.Callback):
    """Keeps the gradient of each step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


def gradients(row, tmp_path, *callbacks, **settings):
    net, keep = make(row, plain=True).double(), Gradient()
    made = trainer(tmp_path, callbacks=[*callbacks, keep], precision="64-true", **settings)
    with pytest.MonkeyPatch.context() as patch:
        if row not in RANDOM:
            patch.setattr(torch, "randn_like", of_the_values)
            patch.setattr(torch.Tensor, "normal_", lambda x, *args: x.fill_(0.05))
        made.fit(net, loaders(ROWS[row][1], 8, dtype=torch.float64))
    return keep.seen


def of_the_values(x, *args, **kwargs):
    """In place of random numbers: a sample has the same ones whatever batch it is in."""
    return torch.sin(37 * x.detach()) + 0.3 * torch.cos(91 * x.detach())


@pytest.mark.parametrize("row", ALIKE)
@pytest.mark.parametrize("parts", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_parts_give_the_gradient_of_the_whole_batch(row, parts, tmp_path):
    settings = {"accumulate_grad_batches": 2, "max_epochs": 1}
    whole = gradients(row, tmp_path, **settings)
    split = gradients(row, tmp_path, MicroBatch(parts=parts), **settings)
    assert len(whole) == len(split) == 2
    for a, b in zip(whole, split, strict=True):
        assert_close(a, b, 1e-9)


@pytest.mark.parametrize("row", RANDOM)
def test_random_techniques_train_in_parts(row, tmp_path):
    whole, split = gradients(row, tmp_path), gradients(row, tmp_path, MicroBatch(parts=3))
    assert len(whole) == len(split)
    assert all(torch.isfinite(value).all() for value in split[-1].values())
    assert not torch.equal(whole[0]["net.0.weight"], split[0]["net.0.weight"])
