"""Gradients of an accumulation window that a try of its next batch leaves alone, and their mean over the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

_BUCKET = 25 * 2**20
"""Bytes that are reduced at once, as in DDP."""


class WindowGradients:
    """The gradients that earlier batches have left, set aside while a batch is tried.

    Args:
        parameters: Those that may get a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self._kept: list[Tensor | None] = []

    def set_aside(self) -> None:
        """From now on ``.grad`` is this batch's gradient alone."""
        self._kept = [p.grad for p in self.parameters]
        self.drop()

    def drop(self) -> None:
        """Forget what a try has gathered."""
        for p in self.parameters:
            p.grad = None

    def put_back(self) -> None:
        """``.grad`` is the window's gradient again, with this batch's added in place, as by autograd."""
        both = [(p, old) for p, old in zip(self.parameters, self._kept, strict=True) if old is not None]
        sums = [(old, p.grad) for p, old in both if p.grad is not None]
        if sums:
            torch._foreach_add_([old for old, _ in sums], [new for _, new in sums])
        for p, old in both:
            p.grad = old
        self._kept = []


@torch.no_grad()
def average_over_ranks(parameters: list[nn.Parameter]) -> None:
    """Make each gradient its mean over the ranks, as DDP does: a rank without one counts as zeros.

    Args:
        parameters: The same ones in the same order on each rank; with no gradient on any rank, one keeps None.
    """
    if not parameters:
        return
    here = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device, dtype=torch.uint8)
    distributed.all_reduce(here, op=distributed.ReduceOp.MAX)
    for p in (p for p, somewhere in zip(parameters, here.tolist(), strict=True) if somewhere):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = _flatten_dense_tensors(bucket).mul_(1 / distributed.get_world_size())
        distributed.all_reduce(flat)
        torch._foreach_copy_(bucket, [*_unflatten_dense_tensors(flat, bucket)])


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device together, some megabytes at once."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for group in groups.values():
        bucket: list[Tensor] = []
        size = 0
        for gradient in group:
            if bucket and size + gradient.nbytes > _BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.nbytes
        yield bucket
