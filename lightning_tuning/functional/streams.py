"""Batches of two streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_streams(batch: Any) -> bool:
    """Whether it is a batch ``{"labeled": ..., "unlabeled": ...}``.

    Example:
        >>> has_streams({"labeled": 1, "unlabeled": 2, "more": 3}), has_streams({"labeled": 1}), has_streams([1])
        (True, False, False)
    """
    return isinstance(batch, Mapping) and {"labeled", "unlabeled"} <= batch.keys()


def labeled_part(batch: Any) -> Any:
    """The labelled part of a batch with two streams; a batch without them is itself the labelled part."""
    return batch["labeled"] if has_streams(batch) else batch
