"""What callbacks collect over a run, kept small, and its pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class Timeline:
    """Values by name at some steps of a run. Where there would be more than ``limit`` steps, every other one is dropped
    and from then on twice as many are left out, so that what is kept is spread over the whole run.

    Args:
        limit: The most steps that are kept, at least 2.

    Example:
        >>> timeline = Timeline(limit=4)
        >>> for step in range(10):
        ...     timeline.add(step, {"head": step / 2})
        >>> steps, names, values = timeline.arrays()
        >>> steps.tolist(), names, values[:, 0].tolist()
        ([0, 4, 8], ['head'], [0.0, 2.0, 4.0])
    """

    def __init__(self, limit: int = 512) -> None:
        self.limit = limit
        self._stride = 1
        self._seen = 0
        self._rows: list[tuple[int, dict[str, NDArray[Any]]]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, values: Mapping[str, ArrayLike]) -> None:
        """Note the values of a step, all of one shape and type."""
        if self._seen % self._stride == 0:
            if len(self._rows) == self.limit:
                del self._rows[1::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._rows.append((step, {name: np.asarray(value) for name, value in values.items()}))
        self._seen += 1

    def arrays(self) -> tuple[NDArray[Any], list[str], NDArray[Any]]:
        """The steps ``[T]``, the names in the order of their first appearance ``[L]``, and the values ``[T, L, ...]``:
        NaN, or for counts 0, where a name had none."""
        steps = np.array([step for step, _ in self._rows], dtype=np.int64)
        names = list(dict.fromkeys(name for _, row in self._rows for name in row))
        if not names:
            return steps, names, np.zeros((len(steps), 0))
        first = next(value for _, row in self._rows for value in row.values())
        missing = np.full_like(first, np.nan if first.dtype.kind == "f" else 0)
        rows = [[row.get(name, missing) for name in names] for _, row in self._rows]
        return steps, names, np.array(rows, dtype=first.dtype)

    def state(self) -> Tensor:
        """All of it as the bytes of a compressed file ``[B]``."""
        steps, names, values = self.arrays()
        file = io.BytesIO()
        counters = np.array([self._stride, self._seen])
        np.savez_compressed(file, steps=steps, names=np.array(names, dtype=str), values=values, counters=counters)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def load(self, state: Tensor) -> None:
        """Take over what :meth:`state` gave."""
        with np.load(io.BytesIO(state.cpu().numpy().tobytes())) as file:
            names = file["names"].tolist()
            self._rows = [
                (int(step), dict(zip(names, row, strict=True)))
                for step, row in zip(file["steps"], file["values"], strict=True)
            ]
            self._stride, self._seen = file["counters"].tolist()
