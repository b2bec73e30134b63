"""Defects of Lightning 2.6.6's LearningRateFinder and BatchSizeFinder, and that LRRangeTest has none of them."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.lr_finder import _LRFinder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import LRRangeTest
from lightning_tuning.functional.lr_range import suggest_lr
from tests.contract.nets import trainer


class TwoGroups(pl.LightningModule):
    """A backbone that is to learn at a tenth of the head's rate."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.1, 4
        self.backbone, self.dropout, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.dropout(self.backbone(batch[0]).tanh())).square().mean()

    def train_dataloader(self):
        x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), self.batch_size, generator=torch.Generator())

    def configure_optimizers(self):
        groups = [{"params": self.backbone.parameters(), "lr": self.lr / 10}, {"params": self.head.parameters()}]
        return torch.optim.SGD(groups, lr=self.lr)


def fit(tmp_path, *callbacks, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    net = TwoGroups()
    made = trainer(tmp_path, callbacks=[*callbacks], **kwargs)
    made.fit(net, ckpt_path=ckpt_path)
    return net, made


def rates(made):
    return [group["lr"] for group in made.optimizers[0].param_groups]


def test_lightnings_finder_gives_every_group_one_rate(tmp_path):
    """``_exchange_scheduler`` and ``_lr_find`` write one number into all parameter groups: what was to learn ten times
    slower, as in fine-tuning, is tested and then trained at the full rate."""
    settings = {"min_lr": 1e-4, "max_lr": 1.0}
    _, stock = fit(tmp_path, LearningRateFinder(**settings, num_training_steps=30))
    assert rates(stock)[0] == rates(stock)[1] != 0.1  # fails when Lightning keeps the ratio
    _, ours = fit(tmp_path, LRRangeTest(**settings, steps=30, apply=True, rule="minimum"))
    assert rates(ours)[1] != 0.1
    assert rates(ours)[0] == pytest.approx(rates(ours)[1] / 10)


@pytest.mark.parametrize(
    "finder", [lambda: LearningRateFinder(num_training_steps=20), lambda: BatchSizeFinder(max_trials=1)]
)
def test_with_lightnings_finders_a_resumed_run_begins_again(finder, tmp_path):
    """Both run in ``on_fit_start``, before the loops' state is restored, and make their own checkpoint take the place
    of the one that the run resumes from: it then trains all its epochs again, from step 0."""
    fit(tmp_path, max_epochs=2)[1].save_checkpoint(tmp_path / "two.ckpt")
    straight = fit(tmp_path, max_epochs=3)[1]
    counted = Count()
    fit(tmp_path, finder(), counted, ckpt_path=tmp_path / "two.ckpt", max_epochs=3)
    assert counted.first_step == 0  # fails when Lightning resumes at step 24
    test, counted = LRRangeTest(apply=True), Count()
    _, resumed = fit(tmp_path, test, counted, ckpt_path=tmp_path / "two.ckpt", max_epochs=3)
    assert counted.first_step == 24
    assert resumed.global_step == straight.global_step == 36
    assert not test.suggestions
    assert rates(resumed) == pytest.approx([0.01, 0.1])


class Count(pl.Callback):
    first_step = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.first_step is None:
            self.first_step = trainer.global_step


def test_lightnings_finder_changes_the_run_that_follows(tmp_path):
    """It takes the training data anew and lets the loader's generator go on, so the run sees other batches."""

    class Shuffled(TwoGroups):
        def __init__(self):
            super().__init__()
            self.order, self.seen = torch.Generator().manual_seed(1), []

        def train_dataloader(self):
            dataset = super().train_dataloader().dataset
            return DataLoader(dataset, 4, shuffle=True, generator=self.order)

        def on_train_batch_start(self, batch, batch_idx):
            self.seen.append(batch[0].sum().item())

    runs = []
    for callbacks in ([], [LearningRateFinder(num_training_steps=20, update_attr=False)], [LRRangeTest(steps=20)]):
        torch.manual_seed(0)
        net = Shuffled()
        trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(net)
        runs.append((net.seen[-12:], net.head.weight.tolist()))
    bare, stock, ours = runs
    assert stock[0] != bare[0]  # fails when Lightning puts the loader back
    assert ours == bare


def test_lightnings_suggestion_takes_the_slope_over_the_rate_itself():
    """On an exponential sweep the differences of neighbouring rates span eight powers of ten, so that the quotient is
    largest where the rates are smallest: noise there hides the fall of the loss at 1e-2."""
    lrs = np.geomspace(1e-8, 1, 100)
    noise = 0.002 * np.sin(1.7 * np.arange(100))
    losses = 2.3 - 1.8 / (1 + np.exp(-4 * (np.log10(lrs) + 2))) + noise
    stock = _LRFinder("exponential", 1e-8, 1, 100)
    stock.results = {"lr": lrs.tolist(), "loss": losses.tolist()}
    assert stock.suggestion() < 1e-6  # fails when Lightning takes it over the logarithm
    assert suggest_lr(lrs.tolist(), losses.tolist())["steepest"] == pytest.approx(1e-2, rel=0.5)
