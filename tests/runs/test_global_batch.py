"""GlobalBatch: the rule by which a run is the same on any number of devices."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_tuning import DigitsDataModule
from lightning_tuning.callbacks import Schedule
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import GlobalBatch

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")


class Net(LightningModule):
    """Without batch norm and dropout, which tie a result to the batch's division."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 10))
        self.length = None

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        self.length = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Streams(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["labeled"], batch_idx)


def digits(**settings):
    defaults = {"batch_size": 8, "val_size": 0, "test_size": 0.2, "seed": 3, "num_workers": 0}
    return DigitsDataModule(**{**defaults, **settings})


def train(folder, *callbacks, data=None, net=None, ckpt_path=None, **settings):
    defaults = {"accelerator": "cpu", "devices": 1, "max_steps": 4}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[*callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **{"enable_checkpointing": False, **defaults, **settings},
    )
    net = net or Net()
    trainer.fit(net, data or digits(), ckpt_path=ckpt_path)
    return trainer, net


def line(told):
    return [message for message in told.messages if message.startswith("Global batch")]


END = "; the learning rate is not scaled by it."


def test_it_tells_the_global_batch(tmp_path, told):
    trainer, _ = train(tmp_path, GlobalBatch())
    assert line(told) == [f"Global batch 8 = 8 x 1 rank{END}"]
    told.clear()
    train(tmp_path, GlobalBatch(), accumulate_grad_batches=3)
    assert line(told) == [f"Global batch 24 = 8 x 3 accumulated x 1 rank{END}"]
    assert trainer.accumulate_grad_batches == 1


def test_it_tells_of_streams(tmp_path, told):
    train(tmp_path, GlobalBatch(16), data=digits(num_labels=40, unlabeled_batch_size=24), net=Streams())
    assert line(told) == [f"Global batch 16 = 8 x 2 accumulated x 1 rank{END}"]


def test_a_loader_without_a_batch_size(tmp_path, told):
    batches = [(torch.randn(4, 1, 16, 16), torch.zeros(4, dtype=torch.long))] * 4
    train(tmp_path, GlobalBatch(), data=DataLoader(batches, batch_size=None))
    assert line(told) == ["Global batch: unknown, as the loader does not tell its batch size."]
    with pytest.raises(InvalidValueError, match=r"^global_batch_size is 8, but the data do not tell the batch size"):
        train(tmp_path, GlobalBatch(8), data=DataLoader(batches, batch_size=None))


def test_a_plain_loader(tmp_path, told):
    data = TensorDataset(torch.randn(24, 1, 16, 16), torch.zeros(24, dtype=torch.long))
    trainer, _ = train(tmp_path, GlobalBatch(12), data=DataLoader(data, batch_size=6))
    assert trainer.accumulate_grad_batches == 2
    assert line(told) == [f"Global batch 12 = 6 x 2 accumulated x 1 rank{END}"]


def test_schedules_see_the_steps_that_will_be_made(tmp_path):
    trainer, net = train(tmp_path, GlobalBatch(32), data=digits(num_labels=80), max_epochs=1, max_steps=-1)
    assert net.length == trainer.global_step == 3  # of ten batches, four to a step


class SaveRank(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save([p.detach() for p in pl_module.parameters()], self.folder / f"rank{trainer.global_rank}.pt")


def test_one_process_and_two_are_the_same_run(tmp_path):
    """Two gloo ranks of 8 make the steps of one process that accumulates two batches of 8."""
    _, one = train(tmp_path, GlobalBatch(16))
    train(tmp_path, GlobalBatch(16), SaveRank(tmp_path), devices=2, strategy="ddp_fork")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    start = Net()
    for mine, first, second, before in zip(one.parameters(), *ranks, start.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(first, mine.detach(), rtol=1e-5, atol=1e-6)
        assert (mine - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (20, {}, "global_batch_size is 20, which is no multiple of 8 x 1 rank. Write a batch_size of 5, or another"),
        (4, {}, "global_batch_size is 4, which is no multiple of 8 x 1 rank. Write a batch_size of 4, or another"),
        (
            32,
            {"accumulate_grad_batches": 2},
            "global_batch_size is 32 = 8 x 1 rank x 4 accumulated, but accumulate_grad_batches is 2. Leave that out.",
        ),
        (
            16,
            {"callbacks": [GradientAccumulationScheduler({0: 2})]},
            "global_batch_size is 16, but GradientAccumulationScheduler changes it. Leave one of them out.",
        ),
        (
            16,
            {"callbacks": [Schedule("accumulation", "constant", value=4)], "max_epochs": 1},
            "global_batch_size is 16, but Schedule(target='accumulation') changes it. Leave one of them out.",
        ),
    ],
)
def test_a_size_that_cannot_be(size, settings, message, tmp_path):
    callbacks = settings.pop("callbacks", [])
    with pytest.raises(InvalidValueError) as caught:
        train(tmp_path, GlobalBatch(size), *callbacks, **settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("scheduler", "told_size"),
    [
        (GradientAccumulationScheduler({0: 2, 1: 4}), "16 = 8 x 2 accumulated x 1 rank"),
        (GradientAccumulationScheduler({1: 4}), "8 = 8 x 1 rank"),
        (Schedule("accumulation", "constant", value=4), "32 = 8 x 4 accumulated x 1 rank"),
    ],
)
@pytest.mark.filterwarnings("error:The checkpoint's run had")
def test_an_accumulation_that_changes(scheduler, told_size, tmp_path, told):
    """What is told is the number of the first epoch, also to a run that goes on in the second."""
    data = {"data": digits(num_labels=64), "max_steps": -1}
    trainer, _ = train(tmp_path, GlobalBatch(), scheduler, max_epochs=1, **data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    train(tmp_path, GlobalBatch(), scheduler, max_epochs=2, ckpt_path=tmp_path / "a.ckpt", **data)
    assert line(told) == [f"Global batch {told_size} in the first epoch{END}"] * 2


class Manual(Net):
    """Steps by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimization_is_not_accumulated(tmp_path, told):
    with pytest.raises(InvalidValueError) as caught:
        train(tmp_path, GlobalBatch(16), net=Manual())
    assert str(caught.value) == (
        "global_batch_size is 16 = 8 x 1 rank x 2 accumulated, but Manual sets self.automatic_optimization = False, "
        "and the Trainer cannot accumulate for it. Leave it out, or write 8."
    )
    assert train(tmp_path, GlobalBatch(8), net=Manual())[0].global_step == 4
    assert line(told) == [f"Global batch 8 = 8 x 1 rank{END}"]


def test_advice_for_several_ranks():
    assert GlobalBatch(48)._advice(32, 2) == "Write a batch_size of 24, or another global batch."
    assert GlobalBatch(51)._advice(32, 2) == "Write a multiple of 2, the number of ranks."
    assert GlobalBatch(1)._advice(32, 2) == "Write a multiple of 2, the number of ranks."


def test_a_datamodule_whose_loader_has_another_batch_size(tmp_path):
    class Other(DigitsDataModule):
        def train_dataloader(self):
            self.batch_size = 4
            return super().train_dataloader()

    data = Other(batch_size=8, val_size=0, test_size=0.2, num_workers=0)
    with pytest.raises(InvalidValueError) as caught:
        train(tmp_path, GlobalBatch(16), data=data)
    assert str(caught.value) == (
        "global_batch_size is 16, but the loader's batches make 8 = 4 x 1 rank x 2 accumulated: the batch_size of the "
        "datamodule is not the loader's."
    )


@pytest.mark.parametrize("size", [0, -8, 2.5, "64"])
def test_a_size_that_is_no_count(size):
    with pytest.raises(
        InvalidValueError, match=r"^global_batch_size is .*; it must be an integer of at least 1 or None"
    ):
        GlobalBatch(size)


def test_a_second_fit_takes_the_size_again(tmp_path):
    trainer, net = train(tmp_path, GlobalBatch(16))
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(net, digits())
    assert (trainer.global_step, trainer.accumulate_grad_batches) == (6, 2)


def test_a_second_fit_with_another_batch_size(tmp_path):
    trainer, net = train(tmp_path, GlobalBatch(32))
    for batch_size, accumulated in ((16, 2), (32, 1), (8, 4)):
        trainer.fit_loop.epoch_loop.max_steps += 1
        trainer.fit(net, digits(batch_size=batch_size))
        assert trainer.accumulate_grad_batches == accumulated


class Saved(LightningDataModule):
    """Has its batch size among its hyper-parameters alone."""

    def __init__(self, batch_size=8):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(zeros(), self.hparams.batch_size)


def zeros():
    return TensorDataset(torch.randn(48, 1, 16, 16), torch.zeros(48, dtype=torch.long))


def test_where_a_batch_size_may_be(tmp_path):
    batches = BatchSampler(SequentialSampler(range(48)), 8, drop_last=False)
    for data in (Saved(), DataLoader(zeros(), batch_sampler=batches), DataLoader(zeros(), None, sampler=batches)):
        assert train(tmp_path, GlobalBatch(24), data=data, max_steps=2)[0].accumulate_grad_batches == 3
