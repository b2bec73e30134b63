"""Batches with a labelled and an unlabelled part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_tuning.errors import InvalidValueError


def has_streams(batch: Any) -> bool:
    """Whether it is a batch ``{"labeled": ..., "unlabeled": ...}``."""
    return isinstance(batch, Mapping) and {"labeled", "unlabeled"} <= batch.keys()


def labeled_part(batch: Any) -> Any:
    """The labelled part of a batch with two streams; a batch without them is itself the labelled part."""
    return batch["labeled"] if has_streams(batch) else batch


def split_streams(batch: Any, technique: str) -> tuple[Any, Any]:
    """``(labeled, unlabeled)`` of a batch ``{"labeled": ..., "unlabeled": ...}``.

    Args:
        batch: What the loader gave.
        technique: Who asks, for the message.

    Raises:
        InvalidValueError: The batch is not such a dict.
    """
    if not has_streams(batch):
        came = f"a dict with the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise InvalidValueError(
            f'{technique} needs batches {{"labeled": ..., "unlabeled": ...}}, but got {came}. Return such a dict of '
            "loaders from train_dataloader, or set unlabeled_batch_size of a datamodule of lightning_tuning."
        )
    return batch["labeled"], batch["unlabeled"]


def weak_and_strong(unlabeled: Any, technique: str) -> tuple[Any, Any]:
    """The weakly and the strongly augmented inputs of an unlabelled batch.

    Args:
        unlabeled: ``{"weak": x, "strong": x}`` or ``(weak, strong)``.
        technique: Who asks, for the message.

    Raises:
        InvalidValueError: The two views are not there.
    """
    if isinstance(unlabeled, Mapping) and {"weak", "strong"} <= unlabeled.keys():
        return unlabeled["weak"], unlabeled["strong"]
    if isinstance(unlabeled, (tuple, list)) and len(unlabeled) == 2:
        return unlabeled[0], unlabeled[1]
    raise InvalidValueError(
        f'{technique} needs unlabelled batches {{"weak": x, "strong": x}} or (weak, strong): two views of the same '
        f"inputs. Got a {type(unlabeled).__name__}."
    )
