"""Which training samples keep their label when labels are scarce."""

from __future__ import annotations

import numpy as np

from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.splits import rank_in_class
from lightning_tuning.errors import InvalidValueError


def choose_labeled(labels: np.ndarray, num_labels: int | None, seed: int) -> np.ndarray:
    """Choose the samples that keep their label, as many of each class as possible.

    With one seed, a smaller choice is contained in every larger one, so that runs with 20, 40 and 100 labels compare.

    Args:
        labels: Class ids of the training part, ``[N]``; of floating targets ``[N, ...]`` any samples are chosen.
        num_labels: How many labels to keep, from the number of classes to ``N``; class counts differ by at most one
            as long as no class runs out. None: all.
        seed: Chooses the samples, 0 to 2**32 - 1.

    Returns:
        Sorted indices into ``labels``, ``[num_labels]``.

    Raises:
        InvalidValueError: Fewer labels than classes, or more than samples.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
        >>> np.bincount(labels[choose_labeled(labels, 4, seed=0)]).tolist()
        [2, 2]
    """
    if num_labels is None:
        return np.arange(len(labels))
    if labels.dtype.kind == "f":
        if not 1 <= num_labels <= len(labels):
            raise InvalidValueError(
                f"num_labels is {num_labels}; it must be an integer from 1 to {len(labels)} (the training samples), or "
                "None to keep every label."
            )
        return np.sort(permutation(len(labels), seed, "labels")[:num_labels])
    num_classes = len(np.unique(labels))
    if not num_classes <= num_labels <= len(labels):
        raise InvalidValueError(
            f"num_labels is {num_labels}; it must be an integer from {num_classes} (one for each class) to "
            f"{len(labels)} (the training samples with a label), or None to keep every label."
        )
    order = permutation(len(labels), seed, "labels")
    balanced = order[np.argsort(rank_in_class(labels, order)[order], kind="stable")]
    return np.sort(balanced[:num_labels])
