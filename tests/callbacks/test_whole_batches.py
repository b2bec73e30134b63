"""What MicroBatch refuses before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from lightning_tuning.callbacks import MicroBatch
from lightning_tuning.callbacks._whole_batches import check_divisible, check_layers
from lightning_tuning.errors import CompositionError
from lightning_tuning.mixins import TECHNIQUES
from tests.contract.nets import loaders, make, trainer
from tests.contract.settings import ROWS

from .small_memory import Net, data, fit, no_collection  # noqa: F401

WHOLE = [technique.stem for technique in TECHNIQUES if technique.whole_batch]


def test_the_techniques_that_need_a_whole_batch():
    assert set(WHOLE) == {
        *("sam", "awp", "free_adversarial"),  # several passes
        *("mixup", "cutmix", "manifold_mixup", "ict", "mixmatch", "remixmatch"),  # partners
        *("flexmatch", "freematch", "softmatch", "adamatch", "dash", "temporal_ensembling"),  # a state over batches
        *("dropblock", "flooding"),
    }


@pytest.mark.parametrize("row", WHOLE)
def test_a_technique_that_needs_a_whole_batch_is_named(row, tmp_path):
    mixin = ROWS[row][0][0]
    with pytest.raises(
        CompositionError, match=f"cannot split a batch with {mixin.__name__}, which {mixin.whole_batch}"
    ):
        trainer(tmp_path, callbacks=[MicroBatch()]).fit(make(row, plain=True), loaders(ROWS[row][1], 8))
    trainer(tmp_path, callbacks=[MicroBatch()], fast_dev_run=1).fit(
        make(row, plain=True, off=True),
        loaders(ROWS[row][1], 8) if not ROWS[row][1].streams else loaders(ROWS["l1"][1], 8),
    )


class Normed(Net):
    def __init__(self, norm):
        super().__init__()
        self.memory = norm


class Foreign(nn.Identity):
    """Named as others' layers are."""


ForeignBatchNorm = type("ForeignBatchNorm", (Foreign,), {})
NORMS = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "ForeignBatchNorm": ForeignBatchNorm,
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_layer_that_needs_a_whole_batch_is_named(kind, tmp_path):
    net = Normed(NORMS[kind]())
    with pytest.raises(CompositionError, match=f"cannot split a batch for memory, a {kind} in training"):
        fit(net, tmp_path, MicroBatch())
    assert net.passed.item() == 0


def test_a_frozen_layer_is_fine_whoever_freezes_it_until_it_is_thawed(tmp_path):
    class Freeze(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.memory.train(trainer.current_epoch == 1)

    net = Normed(nn.BatchNorm1d(4))
    with pytest.raises(CompositionError, match="memory, a BatchNorm1d"):
        fit(net, tmp_path, MicroBatch(parts=2), Freeze())
    assert net.passed.item() == 3 * 2
    check_layers(nn.Sequential(nn.BatchNorm1d(3).eval(), nn.InstanceNorm1d(3), nn.LayerNorm(3)))


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Iterates(Net):
    def training_step(self, dataloader_iter):
        return next(dataloader_iter)


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.last.weight.register_post_accumulate_grad_hook(lambda p: None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Manual, "Manual sets self.automatic_optimization = False"),
        (Iterates, "Iterates.training_step takes from dataloader_iter"),
        (Hooked, r"hook on the gradient of last\.weight"),
    ],
)
def test_modules_that_it_cannot_split_are_refused(kind, message, tmp_path):
    with pytest.raises(MisconfigurationException, match=message):
        fit(kind(), tmp_path, MicroBatch())


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_split_the_weights_are_refused(kind):
    made = SimpleNamespace(strategy=object.__new__(kind))  # on a CPU Lightning makes none of them
    with pytest.raises(MisconfigurationException, match=f"cannot work under {kind.__name__}"):
        check_divisible(made, Net())


class OnCPU(SingleDeviceStrategy):
    """One device, by another name."""


def test_a_strategy_of_one_device_is_fine(tmp_path):
    fit(Net(), tmp_path, MicroBatch(), strategy=OnCPU("cpu"), max_epochs=1)


@pytest.fixture
def alone():
    """A process group of this process, for the time of a test."""
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        ({"ddp_comm_hook": default_hooks.fp16_compress_hook}, None, "communication hook would not be called"),
        ({"static_graph": True}, None, "leave static_graph=True out"),
        ({}, lambda net: setattr(net, "words", nn.Embedding(3, 2, sparse=True)), "sparse gradients of words"),
    ],
)
def test_what_ddp_would_have_to_do_is_refused(arguments, change, message, tmp_path):
    net = Net()
    if change:
        change(net)
    with pytest.raises(MisconfigurationException, match=message):
        fit(net, tmp_path, MicroBatch(), strategy=DDPStrategy(**arguments), devices=1)


def test_a_batch_that_cannot_be_divided_is_refused_when_it_has_to_be(tmp_path):
    class Mixed(Net):
        def training_step(self, batch, batch_idx):
            x, y, _ = batch
            return super().training_step((x, y), batch_idx)

    def collate(samples):
        x, y = map(torch.stack, zip(*samples, strict=True))
        return x, y, torch.zeros(3)

    loader = data(dtype=torch.float32)
    loader.collate_fn = collate
    fit(Mixed(), tmp_path, MicroBatch(), loader=loader, max_epochs=1)
    with pytest.raises(ValueError, match=r"batch\[0\] has 8 rows and batch\[2\] has 3"):
        fit(Mixed(limit=4), tmp_path, MicroBatch(), loader=loader, max_epochs=1)
