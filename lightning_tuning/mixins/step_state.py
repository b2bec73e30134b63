"""State of a technique, such as an adaptive threshold, that advances once an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning.functional.precision import at_least_float32


class StepState(nn.Module):
    """Buffers that advance with the optimizer: once for a whole accumulation window, and not at a step that fp16's
    gradient scaler skips.

    A technique registers it as a submodule when it is switched on, so it is saved, resumed and moved. The teacher's
    copy of the module goes without it.

    Example:
        >>> state = StepState()
        >>> state.register_buffer("mean", torch.tensor(1.0))
        >>> state.averaged("mean", torch.tensor(3.0), momentum=0.5)
        tensor(2.)
        >>> state.mean  # not before the optimizer has stepped
        tensor(1.)
        >>> state.commit()
        >>> state.mean
        tensor(2.)
    """

    advances_with_optimizer = True
    """Guards leave its buffers as they are: a step that is not made does not move them."""

    def __init__(self) -> None:
        super().__init__()
        self._window: dict[str, tuple[float | None, list[Tensor]]] = {}
        """For each buffer the momentum of its average, None for a sum, and the values of the window's batches."""
        self._again: dict[str, int] = {}
        """How many batches of the window have been passed through again."""

    def _apply(self, fn: Any, recurse: bool = True) -> StepState:
        # In half precision a slow average would never move.
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = at_least_float32(buffer)
        return self

    @torch.no_grad()
    def averaged(self, name: str, value: Tensor, momentum: float, record: bool = True) -> Tensor:
        """The exponential average ``momentum * buffer + (1 - momentum) * value`` that the next step will leave.

        Under gradient accumulation ``value`` is the mean of the window's batches so far.

        Args:
            name: The buffer's name.
            value: This batch's value, of the buffer's shape.
            momentum: Share of the old average, in ``[0, 1]``.
            record: Whether the batch counts. False where the window is passed through again: each of its batches
                then gets the average that it got at first.
        """
        seen = self._seen(name, value, momentum, record)
        return torch.lerp(torch.stack(seen).mean(0), getattr(self, name), momentum)

    @torch.no_grad()
    def summed(self, name: str, value: Tensor, record: bool = True) -> Tensor:
        """The sum ``buffer + value`` that the next step will leave; under gradient accumulation with the values of all
        of the window's batches so far. The arguments are those of :meth:`averaged`."""
        return getattr(self, name) + torch.stack(self._seen(name, value, None, record)).sum(0)

    def _seen(self, name: str, value: Tensor, momentum: float | None, record: bool) -> list[Tensor]:
        """The values of the window's batches up to this one."""
        seen = self._window.get(name, (momentum, []))[1]
        value = value.detach().to(getattr(self, name).dtype)
        if record:
            seen = [*seen, value.clone()]
            self._window[name] = momentum, seen
            self._again[name] = 0
        elif seen:
            self._again[name] += 1
            seen = seen[: self._again[name]]
        return seen or [value]

    @torch.no_grad()
    def commit(self) -> None:
        """The optimizer has stepped: the averages and sums become the state."""
        for name, (momentum, seen) in self._window.items():
            buffer, values = getattr(self, name), torch.stack(seen)
            buffer.copy_(buffer + values.sum(0) if momentum is None else torch.lerp(values.mean(0), buffer, momentum))
        self._window.clear()

    def forget(self) -> None:
        """Drop what waits for an optimizer step; at the end of a window that is what a skipped step left."""
        self._window.clear()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A checkpoint of a run without the technique leaves the state as it is, at its start."""
        if any(name.startswith(prefix) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
