"""A plain PyTorch training loop with room for an edit of the gradients, and a logger that keeps what it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from torch import nn

from tests.numerics import array


def train(
    network: nn.Module,
    data: list,
    edit: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], dict[str, np.ndarray]],
    lr: float = 0.1,
    momentum: float = 0.9,
    clip: float | None = None,
) -> None:
    """SGD on ``data``; ``edit`` takes gradients and weights by name, as numpy arrays, and returns new gradients."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    for x, ids in data:
        optimizer.zero_grad()
        F.cross_entropy(network(x), ids).backward()
        named = dict(network.named_parameters())
        edited = edit({n: array(p.grad) for n, p in named.items()}, {n: array(p) for n, p in named.items()})
        for name, gradient in edited.items():
            named[name].grad = torch.from_numpy(gradient).to(named[name].dtype)
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()


class Recorder(Logger):
    """Keeps what it is given, by step."""

    name = version = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)

    def values(self, key: str) -> list[float]:
        return [row[key] for row in self.rows.values() if key in row]
