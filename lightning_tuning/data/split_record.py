"""What a run remembers of its split: a file beside its journal, and digests in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_tuning.data.split_manifest import Split, named, save_split
from lightning_tuning.errors import InvalidValueError


def record_split(trainer: Trainer, keys: Sequence[str], split: Split) -> None:
    """Write ``split.csv`` into the folder of the run's logger; another run's is left as it is, and ``split-2.csv`` and
    so on are tried. Without a logger nothing is written."""
    if not trainer.loggers:
        return
    folder = trainer.log_dir  # a broadcast: every rank has to ask
    if folder is None or not trainer.is_global_zero:
        return
    for number in count(1):
        path = Path(folder, "split.csv" if number == 1 else f"split-{number}.csv")
        if not path.exists():
            return save_split(path, keys, split)
        with suppress(InvalidValueError):  # it holds another split
            return save_split(path, keys, split)


def digests(keys: Iterable[str], split: Split) -> dict[str, str]:
    """Short texts that differ if the samples, or their parts and kept labels, differ."""
    parts = b"".join(blake2b(np.asarray(indices, dtype=np.int64).tobytes()).digest() for indices in split)
    names = "\0".join(keys).encode("utf-8", "surrogateescape")
    return {"samples": blake2b(names, digest_size=16).hexdigest(), "parts": blake2b(parts, digest_size=16).hexdigest()}


def check_usable(
    path: str, keys: Sequence[str], split: Split, known: np.ndarray, groups: np.ndarray | None, chooses: bool
) -> None:
    """Refuse parts of a file, which may have been edited, that cannot be trained on or measured.

    Args:
        path: The file, for messages.
        keys: Name of each sample, ``[N]``.
        split: The parts.
        known: Which samples have a label, bool ``[N]``.
        groups: What each sample belongs to, ``[N]``. None: it is its own.
        chooses: Whether the labels that are kept are chosen anew.

    Raises:
        InvalidValueError: No sample is trained on with its label, one without a label is to be measured, or a group is
            in two parts.
    """
    held_out = np.sort(np.concatenate([split.val, split.test]))
    unknown = [keys[index] for index in held_out[~known[held_out]].tolist()]
    if unknown:
        raise InvalidValueError(
            f"{path}: {named(unknown)} without a label in val or test, where nothing can be measured by it. Write "
            f"train or unused for {'it' if len(unknown) == 1 else 'them'}."
        )
    if not known[split.train].any():
        raise InvalidValueError(f"{path}: no sample of train has a label. Write train for some that have one.")
    if not chooses and not known[split.labeled].any():
        raise InvalidValueError(f"{path}: no sample of train keeps its label. Write yes for some, or give num_labels.")
    part_of: dict[object, str] = {}
    for part, indices in zip(("train", "val", "test"), split[:3], strict=True):
        for group in [] if groups is None else np.unique(groups[indices]).tolist():
            if part_of.setdefault(group, part) != part:
                raise InvalidValueError(
                    f"{path}: the group {group!r} is in {part_of[group]} and in {part}, and no group may be in two "
                    "parts. Correct the file, or leave group out."
                )


def check_split(saved: Mapping[str, Any], ours: Mapping[str, str], resumes: bool) -> None:
    """Compare a checkpoint's digests with the run's.

    Args:
        saved: What the checkpoint holds; older ones have no digests.
        ours: Those of :func:`digests`.
        resumes: Whether training goes on. Else a warning is given, and that only if samples changed sides.

    Raises:
        InvalidValueError: Training would go on with other samples, parts or labels.
    """
    same_samples = saved.get("samples", ours["samples"]) == ours["samples"]
    same_parts = saved.get("parts", ours["parts"]) == ours["parts"]
    if same_samples and same_parts:
        return
    if resumes:
        what = "other parts or labels" if same_samples else "other samples"
        why = "val_size, test_size, split_seed, fold, num_labels or split_file" if same_samples else "the files"
        raise InvalidValueError(
            f"The checkpoint's run had {what}, so samples that it was trained on could now be measured: {why} "
            "changed. Undo the change, or begin a new run."
        )
    if same_samples:
        rank_zero_warn(
            "The checkpoint's run had other parts of the same samples (val_size, test_size, split_seed, fold, "
            "num_labels or split_file differ): what is measured now may be what it was trained on. Write "
            "--data.split_file=<its folder>/split.csv for its own parts."
        )
