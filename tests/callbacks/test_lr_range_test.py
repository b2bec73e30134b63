"""LRRangeTest leaves nothing behind, measures what training would, and sets rates in proportion."""

import csv
import json
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_tuning import AutoClip, ExactResume, GradientNoise, LRRangeTest
from lightning_tuning.errors import InvalidValueError
from tests.contract.nets import Host, assert_equal_state, loaders, make, trainer
from tests.contract.settings import ROWS, Setting
from tests.contract.test_contract_ddp import SaveRank

DATA = Setting({})
QUICK = {"sam", "ema_teacher", "freematch", "temporal_ensembling", "self_distillation", "free_adversarial", "dropout"}


class Batches(pl.Callback):
    """The batches, losses and rates of a run, and the random numbers at each batch's start."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = torch.get_rng_state().sum().item(), random.getstate()[1][-1], np.random.get_state()[2]  # noqa: NPY002
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.seen.append((str(batch), batch_idx, trainer.global_step, rates, state))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((outputs["loss"].item(), len(trainer.optimizers[0].state)))


def journal(made):
    path = Path(made.logger.experiment.metrics_file_path)
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def assert_same_run(build, tmp_path, range_test=None, others=lambda: [], **kwargs):
    """Train with the test and without it, and compare everything that there is."""
    runs = []
    for number, test in enumerate([[], [range_test or LRRangeTest(steps=12, max_lr=1.0)]]):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
        net, data = build()
        batches, logger = Batches(), CSVLogger(tmp_path, version=number)
        callbacks = [*others(), *test, batches]
        made = trainer(tmp_path, callbacks=callbacks, logger=logger, log_every_n_steps=1, **kwargs)
        made.fit(net, *data) if isinstance(data, tuple) else made.fit(net, data)
        scaler = getattr(made.precision_plugin, "scaler", None)
        runs.append({
            "net": dict(net.state_dict()),
            "optimizer": made.optimizers[0].state_dict(),
            "loops": made.fit_loop.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": torch.get_rng_state(),
            "journal": journal(made),
            "metrics": {name: float(value) for name, value in made.callback_metrics.items()},
            "batches": batches.seen,
            "callbacks": [str(callback.state_dict()) for callback in callbacks if callback not in test],
            "grads": [parameter.grad is None for parameter in net.parameters()],
        })  # fmt: skip
        if test:
            assert test[0].suggestions
    assert_equal_state(*runs)


@pytest.mark.parametrize(
    "row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]
)
def test_the_run_is_bitwise_the_run_without_it_with_each_technique(row, tmp_path):
    assert_same_run(lambda: (make(row), loaders(ROWS[row][1], 8)), tmp_path)


class Rich(Host):
    """A host that keeps things in every way there is."""

    def __init__(self, optimizer=torch.optim.Adam):
        super().__init__()
        self.make, self.accuracy = optimizer, MulticlassAccuracy(3)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.seen, self.generator = [0], torch.Generator().manual_seed(3)

    def training_step(self, batch, batch_idx):
        x, target = batch
        noise = torch.rand(x.shape, generator=self.generator) + 0.1 * random.random() * np.random.rand()  # noqa: NPY002
        logits = self(x + 0.1 * noise + self.hidden.sum() + 0.001 * len(self.seen))
        self.hidden += 0.01 * torch.rand(2)
        self.seen.append(batch_idx)
        self.accuracy(logits, target)
        self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True)
        loss = self.compute_loss(logits, target)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": StepLR(optimizer, 3, 0.5), "interval": "step"}]


class OwnNoise(Dataset):
    """Draws from a generator of its own and counts."""

    def __init__(self):
        self.x, self.y = torch.randn(32, 2, 5, 5), torch.randint(3, (32,))
        self.rng, self.count = np.random.default_rng(0), 0

    def __len__(self):
        return 32

    def __getitem__(self, index):
        self.count += 1
        return self.x[index] + 0.01 * self.count * self.rng.random(), self.y[index]


def shuffled(**kwargs):
    dataset = OwnNoise()
    dataset.x = dataset.x.float()
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(1))
    return DataLoader(dataset, 8, sampler=sampler, collate_fn=collate, **kwargs)


def collate(items):
    return torch.stack([x for x, _ in items]).float(), torch.stack([y for _, y in items])


SETTINGS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"precision": "16-mixed"},
    "few batches": {"limit_train_batches": 3, "max_epochs": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_run_is_bitwise_the_run_without_it_whatever_the_host_keeps(name, tmp_path):
    assert_same_run(lambda: (Rich(), shuffled()), tmp_path, **SETTINGS[name])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])
def test_other_optimizers(optimizer, tmp_path):
    assert_same_run(lambda: (Rich(optimizer), shuffled()), tmp_path)


def test_beside_callbacks_that_edit_gradients_and_change_the_accumulation(tmp_path):
    def others():
        return [ExactResume(seed=1), AutoClip(history=4), GradientNoise(), GradientAccumulationScheduler({0: 2, 1: 1})]

    assert_same_run(lambda: (Rich(), shuffled()), tmp_path, others=others)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers(persistent, tmp_path):
    assert_same_run(lambda: (Rich(), shuffled(num_workers=1, persistent_workers=persistent)), tmp_path)


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(21):
            torch.manual_seed(index)
            yield torch.randn(2, 5, 5), torch.tensor(index % 3)


@pytest.mark.parametrize("limit", [1.0, 3])
def test_data_without_a_length(limit, tmp_path):
    # The stream of this loader seeds the default generator; the prefetching of a loader without length is kept too.
    assert_same_run(lambda: (Rich(), DataLoader(Stream(), 4)), tmp_path, limit_train_batches=limit)


class OwnLoader:
    """No DataLoader, and its own iterator."""

    def __init__(self):
        self.batches, self.place = list(loaders(DATA, 8)), 0

    def __iter__(self):
        for self.place in range(len(self.batches)):  # noqa: B020
            yield self.batches[(self.place + 1) % 4]

    def __len__(self):
        return 4


def test_other_loaders_and_validation_within_epochs(tmp_path):
    assert_same_run(lambda: (Rich(), (OwnLoader(), loaders(DATA, 8))), tmp_path, val_check_interval=2)
