"""A device with little memory, made up: a layer that no more than some samples pass."""

from __future__ import annotations

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning.callbacks import MicroBatch
from tests.contract.nets import InTurns, trainer

MESSAGES = {
    "cuda": (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    "cpu": (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "real": None,
    "cublas": (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Collecting the garbage of a process that holds all the tests takes longer than a test."""
    monkeypatch.setattr("gc.collect", int)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, memory):
        ctx.memory = memory
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.memory.check(gradient)
        return gradient, None


class Memory(nn.Module):
    """Fails for more than ``limit`` samples: in the forward pass, or in the middle of the backward pass."""

    def __init__(self, limit=10**6, where="forward", kind="cuda", rank=None):
        super().__init__()
        self.limit, self.where, self.kind, self.rank = limit, where, kind, rank
        self.sizes = []
        """Of all that came by."""

    def check(self, x):
        here = self.rank is None or torch.distributed.get_rank() == self.rank
        if here and len(x) > self.limit:
            if self.kind == "real":
                torch.empty(2**60, dtype=torch.uint8)
            kind, message = MESSAGES[self.kind]
            raise kind(message)

    def forward(self, x):
        self.sizes.append(len(x))
        if self.where == "forward":
            self.check(x)
            return x
        return _Backward.apply(x, self)


class Net(pl.LightningModule):
    """Two layers with the memory between them: where it fails in a backward pass, the second has its gradient."""

    def __init__(self, dropout=0.0, **memory):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.memory, self.drop = nn.Linear(3, 4), Memory(**memory), nn.Dropout(dropout)
        self.last = nn.Linear(4, 2)
        self.register_buffer("passed", torch.zeros(1))
        self.states = []

    def forward(self, x):
        self.states.append((torch.rand(1).item(), random.random(), np.random.random()))  # noqa: NPY002
        self.passed += 1
        return self.last(self.drop(self.memory(torch.tanh(self.first(x)))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(size=24, batch_size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(size, n, generator=generator, dtype=dtype) for n in (3, 2))
    dataset = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(dataset, batch_size, sampler=InTurns(size), generator=torch.Generator())


def fit(net, tmp_path, *callbacks, loader=None, ckpt_path=None, **kwargs):
    dtype = next(net.parameters()).dtype
    made = trainer(tmp_path, callbacks=[*callbacks], **kwargs)
    made.fit(net, data(dtype=dtype) if loader is None else loader, ckpt_path=ckpt_path)
    return made


def split(tmp_path, limit, where="forward", parts=1, **kwargs):
    """A fit of a float64 net in a memory of that size; returns the net and the callback."""
    net, callback = Net(limit=limit, where=where).double(), MicroBatch(parts)
    fit(net, tmp_path, callback, **{"precision": "64-true", **kwargs})
    return net, callback
