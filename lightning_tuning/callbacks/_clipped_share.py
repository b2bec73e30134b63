"""Which steps were clipped, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tuning.functional.precision import at_least_float32

_KEPT_STEPS = 256


class ClippedShare:
    """The share of the optimizer steps that were clipped. It is added up on the device, many steps at once.

    Example:
        >>> share = ClippedShare()
        >>> for norm in (0.5, 2.0, 3.0, 9.0):
        ...     share.note(torch.tensor(norm), 1.0)
        ...     share.count()
        >>> share.take()
        0.75
    """

    def __init__(self) -> None:
        self._noted: tuple[Tensor, float] | None = None
        self._kept: list[tuple[Tensor, float]] = []
        self._steps = 0
        self._clipped: Tensor | float = 0.0

    def note(self, norm: Tensor | None, limit: float) -> None:
        """The step under way clips a gradient of this norm to ``limit``; a truth value is a norm with the limit 0.5.

        None: it has no gradient.
        """
        self._noted = None if norm is None else (norm, limit)

    def count(self) -> None:
        """The step under way changes the weights; one that the scaler skips is not counted."""
        if self._noted is not None:
            self._kept.append(self._noted)
            self._noted = None
            if len(self._kept) >= _KEPT_STEPS:
                self._add_up()

    def _add_up(self) -> None:
        if self._kept:
            norms = at_least_float32(torch.stack([norm for norm, _ in self._kept]))
            limits = norms.new_tensor([limit for _, limit in self._kept])
            self._clipped = (limits / (norms + 1e-6) < 1).sum() + self._clipped  # as clip_grad_norm_ decides it
            self._steps += len(self._kept)
            self._kept.clear()

    def take(self) -> float | None:
        """The share, which is begun anew; None if no step was counted."""
        steps, clipped = self.state()
        self.__init__()  # type: ignore[misc]
        return clipped / steps if steps else None

    def state(self) -> tuple[int, float]:
        """How many steps were counted, and how many of them were clipped."""
        self._add_up()
        return self._steps, float(self._clipped)

    def load(self, state: tuple[int, float]) -> None:
        """Take over what :meth:`state` gave."""
        self.__init__()  # type: ignore[misc]
        self._steps, self._clipped = state
