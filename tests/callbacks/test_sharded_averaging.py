"""Averages under FSDP 2: two gloo processes, each of which holds a part of every parameter."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import EMATeacherMixin, MeanTeacherMixin
from lightning_tuning.callbacks import WeightEMA
from tests.contract.nets import assert_equal_state, trainer

pytestmark = pytest.mark.slow


class Net(pl.LightningModule):
    """Layers of five rows, which two processes share unevenly."""

    def __init__(self, sharded=True):
        super().__init__()
        self.sharded = sharded
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3))

    def configure_model(self):
        if self.sharded and not isinstance(self.net[0].weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[2], mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def forward(self, x):
        return self.net(x)

    def compute_loss(self, logits, target):
        return F.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        return self.compute_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


class Taught(EMATeacherMixin, MeanTeacherMixin, Net):
    """Learns from a teacher, which answers in validation."""

    def __init__(self, sharded=True):
        super().__init__(sharded=sharded, ema_teacher_decay=0.8, mean_teacher_weight=1.0)


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 8)


class Measured(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


def train(folder, sharded, epochs=4, ckpt_path=None, distributed=False, keep=None, callback=None, kind=Net):
    net, measured, callback = kind(sharded), Measured(), callback or WeightEMA(decay=0.8, start="2st")
    settings = {}
    if sharded:
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed)
        settings = {"strategy": strategy, "devices": 2}
    saving = [ModelCheckpoint(folder, keep, every_n_epochs=2, monitor="val/loss", save_top_k=-1)] if keep else []
    made = trainer(
        folder,
        callbacks=[callback, measured, *saving],
        max_epochs=epochs,
        num_sanity_val_steps=0,
        enable_checkpointing=bool(keep),
        **settings,
    )
    made.fit(net, data(), data(), ckpt_path=ckpt_path)
    whole = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in net.named_parameters()
    }
    return {"state": whole, "losses": measured.losses, "updates": getattr(callback, "_updates", 0)}


def work(rank, port, folder, arguments, results):
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="test",
    )
    try:
        torch.save(train(folder, True, **arguments), results / f"rank{rank}.pt")
    except BaseException:
        (results / f"error{rank}").write_text(traceback.format_exc())
        raise


def train_on_two(folder, **arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=work, args=(rank, port, folder, arguments, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    errors = "\n".join(path.read_text() for path in folder.glob("error*"))
    assert [process.exitcode for process in processes] == [0, 0], errors
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert_equal_state(ranks[0]["state"], ranks[1]["state"])
    return ranks[0]


def test_two_shards_are_one_process(tmp_path):
    one = train(tmp_path, sharded=False)
    found = train_on_two(tmp_path, keep="kept")
    assert found["updates"] == one["updates"] == 10
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-6)
    for name, value in one["state"].items():
        torch.testing.assert_close(found["state"][name], value)
    saved = Net(sharded=False)
    saved.load_state_dict(torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"])
    measured = trainer(tmp_path).validate(saved, data(), verbose=False)[0]["val/loss"]
    assert measured == pytest.approx(one["losses"][1], abs=1e-6)


@pytest.mark.parametrize("distributed", [False, True], ids=["one file", "a file each"])
def test_a_resumed_run_is_the_straight_one(distributed, tmp_path):
    straight = train_on_two(tmp_path, distributed=distributed, keep="kept")
    resumed = train_on_two(tmp_path, distributed=distributed, ckpt_path=tmp_path / "kept.ckpt")
    assert_equal_state(straight["state"], resumed["state"])
    assert straight["losses"][2:] == resumed["losses"]


def test_a_teacher_of_two_shards_is_that_of_one_process(tmp_path):
    arguments = {"kind": Taught, "callback": pl.Callback()}
    one = train(tmp_path, sharded=False, **arguments)
    found = train_on_two(tmp_path, keep="kept", **arguments)
    assert any(name.startswith("ema_teacher") for name in one["state"])
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert found["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(found["state"][name], value)
    resumed = train_on_two(tmp_path, ckpt_path=tmp_path / "kept.ckpt", **arguments)
    assert_equal_state(found["state"], resumed["state"])
    assert found["losses"][2:] == resumed["losses"]


@pytest.mark.filterwarnings("ignore:.*EMATeacherMixin answers in evaluation mode")
def test_teacher_and_average_together(tmp_path):
    one = train(tmp_path, sharded=False, kind=Taught)
    found = train_on_two(tmp_path, kind=Taught)
    for name, value in one["state"].items():
        torch.testing.assert_close(found["state"][name], value)
