"""What Lightning's sharding strategies do on a CPU: docs/presets.md says the same."""

import os
import pickle
import socket
import traceback
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import DigitsDataModule
from lightning_tuning.callbacks import ExactResume
from lightning_tuning.data_ranks import data_ranks
from lightning_tuning.presets import preset
from lightning_tuning.runs import GlobalBatch


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", FSDPStrategy()], ids=str)
def test_fsdp_is_refused(strategy):
    with pytest.raises(ValueError, match="The strategy `fsdp` requires a GPU accelerator, but received"):
        Trainer(accelerator="cpu", devices=2, strategy=strategy)


def test_model_parallel_is_not_for_fp16():
    with pytest.raises(ValueError, match=r"`ModelParallelStrategy` does not support .*precision='16-mixed'"):
        Trainer(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), precision="16-mixed")


def test_who_has_samples_of_its_own():
    strategy = object.__new__(ModelParallelStrategy)
    mesh = SimpleNamespace(size=lambda: 2, get_local_rank=lambda: 1)
    for meshes, expected in ((None, (4, 3)), ({"data_parallel": mesh}, (2, 1))):
        strategy._device_mesh = meshes
        assert data_ranks(SimpleNamespace(strategy=strategy, world_size=4, global_rank=3)) == expected
    assert data_ranks(Trainer(**preset("cpu", "fast"))) == (1, 0)


class Net(LightningModule):
    def __init__(self, shards):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.shards = shards

    def configure_model(self):
        if self.shards:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train(strategy, shards, **settings):
    """The weights after two epochs, and the steps."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    trainer = Trainer(
        **preset("cpu", "fast", devices=2, strategy=strategy, max_epochs=2, enable_model_summary=False, **settings)
    )
    net = Net(shards)
    trainer.fit(net, DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4))
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return [w.detach().numpy() for w in weights], trainer.global_step


CLIPPED = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}


def shared(strategy):
    """What a rank is given of the package's data, and draws: the first two batches' sums and a number each."""
    seen = []

    class Look(Net):
        def training_step(self, batch, batch_idx):
            seen.append((batch[0].sum().item(), torch.rand(1).item()))
            return super().training_step((batch[0].flatten(1)[:, :4], batch[1] % 3), batch_idx)

    callbacks, quiet = [ExactResume(), GlobalBatch(16)], {"enable_model_summary": False, "limit_val_batches": 0}
    trainer = Trainer(**preset("cpu", "fast", devices=2, strategy=strategy, max_steps=2, callbacks=callbacks, **quiet))
    trainer.fit(Look(True), DigitsDataModule(batch_size=8, num_workers=0))
    return seen[:2], trainer.accumulate_grad_batches


CASES = {
    "tensors split": lambda: shared(ModelParallelStrategy(1, 2)),
    "data split": lambda: shared(ModelParallelStrategy(2, 1)),
    "ddp": lambda: train("ddp", False),
    "sharded": lambda: train(ModelParallelStrategy(2, 1), True),
    "ddp, clipped": lambda: train("ddp", False, **CLIPPED),
    "sharded, clipped": lambda: train(ModelParallelStrategy(2, 1), True, **CLIPPED),
    "sharded, bf16": lambda: train(ModelParallelStrategy(2, 1), True, precision="bf16-mixed"),
    "nothing sharded": lambda: train(ModelParallelStrategy(2, 1), False),
    "sizes left out": lambda: train(ModelParallelStrategy(), True),
}


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="test")
    try:
        found = {name: case() for name, case in CASES.items()}
        (folder / f"rank{rank}").write_bytes(pickle.dumps(found))
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        raise


@pytest.mark.slow
def test_model_parallel_with_two_gloo_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=work, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    errors = "\n".join(path.read_text() for path in tmp_path.glob("error*"))
    assert [process.exitcode for process in processes] == [0, 0], errors
    first, second = (pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(2))

    # Processes that share tensors are given the same batches and draw the same numbers; those that share data are not.
    assert first["tensors split"] == second["tensors split"]
    assert first["tensors split"][1] == 2 * first["data split"][1] == 2
    assert all(a != b for a, b in zip(first["data split"][0], second["data split"][0], strict=True))

    def apart(one, other):
        return max(abs(a - b).max() for a, b in zip(one[0], other[0], strict=True))

    for name in CASES.keys() - {"nothing sharded", "tensors split", "data split"}:
        assert apart(first[name], second[name]) == 0, name
    assert apart(first["sharded"], first["ddp"]) < 1e-6
    assert apart(first["sharded, clipped"], first["ddp, clipped"]) < 1e-6
    assert apart(first["ddp, clipped"], first["ddp"]) > 1e-4
    assert 0 < apart(first["sharded, bf16"], first["sharded"]) < 0.05
    # Without a layer that is sharded no gradient is shared, and nothing says so.
    assert apart(first["nothing sharded"], second["nothing sharded"]) > 0.01
    # By default the processes of a node share tensors, not data: each step takes one batch in place of two.
    assert first["sizes left out"][1] == 2 * first["sharded"][1] == 16
