"""A batch in parts of about equal size, and what the parts give as what the batch would have given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import has_streams


class Part(NamedTuple):
    """Some of a batch's samples."""

    batch: Any
    share: float
    """Its part of the batch's samples."""
    rows: int
    """Its samples; of a batch of two streams those of the labelled one."""


def units_of(batch: Any) -> int:
    """The most parts that a batch has: one for each sample.

    Of ``{"labeled": ..., "unlabeled": ...}`` each part has the same share of both streams, so that their losses, which
    are means, are weighted alike: of 8 and 56 samples 8 parts of 1 and 7.

    Raises:
        InvalidValueError: Something in the batch cannot be divided, or is not of as many rows as the rest.
    """
    if not has_streams(batch):
        return _row_count(batch, "batch")
    counts = {key: _row_count(stream, f"batch[{key!r}]") for key, stream in batch.items()}
    return math.gcd(*counts.values())


def parts_of(batch: Any, parts: int) -> list[Part]:
    """The samples of a batch in their order, in at most as many parts as there are samples.

    Tensors and arrays are divided along their first dimension, and so are lists of numbers or texts; in tuples, lists,
    mappings and dataclasses each item is. Numbers, texts and None by themselves go to every part.

    Args:
        batch: Tensors and what holds them.
        parts: How many; their sizes differ by one sample at most.

    Raises:
        InvalidValueError: Something in the batch cannot be divided, or is not of as many rows as the rest.

    Example:
        >>> [(part.batch, part.rows) for part in parts_of([torch.arange(5), "train"], 2)]
        [([tensor([0, 1, 2]), 'train'], 3), ([tensor([3, 4]), 'train'], 2)]
    """
    units = units_of(batch)
    if units == 0:
        return [Part(batch, 1.0, 0)]
    parts = min(parts, units)
    bounds = [-(-units * k // parts) for k in range(parts + 1)]
    streams = dict(batch) if has_streams(batch) else {None: batch}
    scales = {key: _row_count(stream, "batch") // units for key, stream in streams.items()}
    main = scales.get("labeled", 1)
    found = []
    for low, high in pairwise(bounds):
        cuts = {key: _cut(stream, low * scales[key], high * scales[key]) for key, stream in streams.items()}
        found.append(
            Part(_like(batch, cuts) if None not in cuts else cuts[None], (high - low) / units, (high - low) * main)
        )
    return found


def joined(values: Sequence[Any], shares: Sequence[float], rows: Sequence[int]) -> Any:
    """What a training step would have returned for the batch, of what it returned for its parts.

    Tensors with a row a sample are put together, scalars become the mean weighted by ``shares``, mappings are taken
    item by item; of anything else the last stays.
    """
    last = values[-1]
    if isinstance(last, Mapping):
        common = [key for key in last if all(key in value for value in values)]
        return {key: joined([value[key] for value in values], shares, rows) for key in common}
    if not isinstance(last, Tensor):
        return last
    if last.ndim == 0:
        return weighted_mean(values, shares) if last.is_floating_point() else last
    per_sample = all(len(value) == count for value, count in zip(values, rows, strict=True))
    return torch.cat([*values]) if per_sample and len({value.shape[1:] for value in values}) == 1 else last


def weighted_mean(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """The mean of scalar tensors; of one value the value itself."""
    if len(values) == 1:
        return values[0]
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _row_count(batch: Any, name: str) -> int:
    found = list(_leaves(batch, name))
    if not found:
        raise InvalidValueError(f"MicroBatch cannot split {name}: it holds no tensor with a row for each sample.")
    (first, count), *others = found
    for other, rows in others:
        if rows != count:
            raise InvalidValueError(
                f"MicroBatch cannot split the batch: {first} has {count} rows and {other} has {rows}. Each tensor, "
                "array and list has to have one row a sample; unlabelled samples of another number go as "
                '{"labeled": ..., "unlabeled": ...}.'
            )
    return count


def _leaves(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """The name and the number of rows of all that is divided."""
    if isinstance(value, (Tensor, np.ndarray)) and getattr(value, "layout", torch.strided) is torch.strided:
        if value.ndim:
            yield name, len(value)
    elif _is_constant(value):
        return
    elif _is_list_of_constants(value):
        yield name, len(value)
    elif (items := _items(value)) is not None:
        for key, item in items.items():
            yield from _leaves(item, f"{name}.{key}" if dataclasses.is_dataclass(value) else f"{name}[{key!r}]")
    else:
        raise InvalidValueError(
            f"MicroBatch cannot split {name}, a {type(value).__name__}: a batch may hold tensors, arrays, numbers, "
            "texts, and tuples, lists, mappings and dataclasses of them."
        )


def _cut(value: Any, low: int, high: int) -> Any:
    if _is_constant(value) or (isinstance(value, (Tensor, np.ndarray)) and not value.ndim):
        return value
    if isinstance(value, (Tensor, np.ndarray)) or _is_list_of_constants(value):
        return value[low:high]
    return _like(value, {key: _cut(item, low, high) for key, item in (_items(value) or {}).items()})


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, (Number, str, bytes))


def _is_list_of_constants(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and len(value) > 0
    return is_list and all(_is_constant(item) and item is not None for item in value)


def _items(value: Any) -> dict[Any, Any] | None:
    """What a container holds; None if it is none."""
    if isinstance(value, PackedSequence):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _like(value: Any, items: dict[Any, Any]) -> Any:
    """A container as ``value`` of other items."""
    if isinstance(value, Mapping):
        return type(value)(items)  # type: ignore[call-arg]
    if not isinstance(value, (list, tuple)):
        return dataclasses.replace(value, **items)
    make: Callable[..., Any] = type(value)
    return make(*items.values()) if hasattr(value, "_fields") else make(items.values())
