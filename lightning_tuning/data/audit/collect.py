"""Going through all samples, each once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lightning_tuning.data.audit.copies import copy_faults, copy_groups
from lightning_tuning.data.audit.faults import KINDS, NO_LABEL, Fault, Severity
from lightning_tuning.data.audit.look import Look, look_at
from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.loader import quiet_opencv
from lightning_tuning.data.workers import reader_count

FEW = 1000
"""Below so many samples no process is started for them."""
PARTS = ("train", "val", "test")
_SECONDS_BEFORE_BAR = 2.0


@dataclass
class Audit:
    """What was found out about the samples of a datamodule.

    Attributes:
        keys: Name of each sample, ``[N]``.
        parts: The part that each sample is in: its place in ``PARTS``, or -1, ``[N]``.
        labels: All targets, ``[N, ...]``.
        task: What the targets are.
        class_names: Name of each class, label or value.
        sizes: Height and width of each image, 0 where it is none, ``[N, 2]``.
        copies: Number of the group of equal samples that a sample is in, from 1; 0: it is in none, ``[N]``.
        faults: What is wrong with samples, by index; those that nothing is wrong with are not there.
        pixels: How often each class comes in the masks of each part, ``[3, K]``. None if there are no masks.
    """

    keys: Sequence[str]
    parts: np.ndarray
    labels: np.ndarray
    task: str
    class_names: Sequence[str]
    sizes: np.ndarray
    copies: np.ndarray
    faults: dict[int, list[Fault]]
    pixels: np.ndarray | None

    def with_fault(self, *kinds: str) -> list[int]:
        """The samples that have a fault of one of the kinds, increasing."""
        return sorted(i for i, faults in self.faults.items() if any(fault.kind in kinds for fault in faults))

    def severity(self, index: int) -> Severity | None:
        """The worst that is wrong with a sample; None: nothing."""
        found = {KINDS[fault.kind].severity for fault in self.faults.get(index, ())}
        return "error" if "error" in found else "warning" if found else None

    def members(self, part: int) -> np.ndarray:
        """The samples of a part that can be read and have a label in range."""
        labeled = self.labels != NO_LABEL if self.task == "multiclass" else np.ones(len(self.labels), bool)
        return np.setdiff1d(np.flatnonzero(labeled & (self.parts == part)), self.with_fault("unreadable", "label"))

    def counts(self) -> np.ndarray | None:
        """Usable samples of each class, or with each label, in each part; where there are masks their pixels.

        Returns:
            ``[3, K]``, or None if the targets are no classes.
        """
        if self.pixels is not None:
            return self.pixels
        classes = len(self.class_names)
        labels = [self.labels[self.members(part)] for part in range(len(PARTS))]
        if self.task == "multiclass":
            return np.stack([np.bincount(ids, minlength=classes) for ids in labels])
        if self.task == "multilabel":
            return np.stack([rows.sum(axis=0).astype(np.int64) for rows in labels])
        return None


def audit_samples(datamodule: KeyedDataModule, progress: bool = False) -> Audit:
    """Read every sample of a datamodule once, whatever its ``on_bad_sample``.

    Of each sample only hash, size and faults are kept.

    Args:
        datamodule: After ``setup``, or after :func:`set_up`. ``num_workers`` processes read its samples; None: as many
            as the machine has cores, but one, at most 8; none for less than 1000 samples or data in memory.
        progress: Whether to show a progress bar, on standard error and only if that is a terminal.

    Example:
        >>> from lightning_tuning.data import DigitsDataModule
        >>> data = DigitsDataModule()
        >>> data.setup()
        >>> audit_samples(data).with_fault("unreadable")
        []
    """
    labels = np.asarray(datamodule.labels)
    count, classes = len(labels), datamodule.num_classes
    faults: dict[int, list[Fault]] = defaultdict(list)
    contents, masks = (np.zeros((count, 2), np.uint64) for _ in range(2))
    sizes = np.zeros((count, 2), np.int32)
    parts = np.full(count, -1, np.int8)
    for number, name in enumerate(PARTS):
        parts[getattr(datamodule, f"{name}_indices")] = number
    pixels = None
    shown = None if progress else True
    looks = tqdm(_looks(datamodule), "audit", count, leave=False, delay=_SECONDS_BEFORE_BAR, disable=shown)
    for index, look in enumerate(looks):
        if isinstance(look, Fault):
            faults[index].append(look)
            continue
        contents[index] = np.frombuffer(look.content, np.uint64)
        masks[index] = np.frombuffer(look.mask, np.uint64)
        sizes[index] = look.size
        if look.pixels is not None:
            pixels = np.zeros((len(PARTS), classes), np.int64) if pixels is None else pixels
            if parts[index] >= 0:
                pixels[parts[index]] += look.pixels
        if look.faults:
            faults[index] += look.faults
    for index, fault in label_faults(labels, datamodule.task, classes, parts > 0).items():
        faults[index].append(fault)
    unreadable = [i for i, found in faults.items() if found[0].kind == "unreadable"]
    copies = copy_groups(contents, unreadable)
    classes_of = labels if datamodule.task in ("multiclass", "multilabel") else None
    for index, fault in copy_faults(copies, parts, classes_of, masks, datamodule.keys):
        faults[index].append(fault)
    names = tuple(datamodule.class_names)
    names += tuple(map(str, range(len(names), classes)))
    return Audit(datamodule.keys, parts, labels, datamodule.task, names, sizes, copies, dict(faults), pixels)


def set_up(datamodule: KeyedDataModule) -> None:
    """Load and split the samples as ``setup`` does, but neither fit anything to them nor stop at a bad one.

    The datamodule can be audited then, but makes no batches.
    """
    if hasattr(datamodule, "on_bad_sample"):
        datamodule.on_bad_sample = "skip"
    datamodule.prepare_data()
    datamodule.prepare_views = lambda: None  # type: ignore[method-assign]
    datamodule.setup("fit")


def label_faults(labels: np.ndarray, task: str, num_classes: int, measured: np.ndarray) -> dict[int, Fault]:
    """The targets that are out of range, by index.

    Args:
        labels: Class ids ``[N]``, -1 where there is none, multi-hot labels ``[N, K]`` or values ``[N, D]``.
        task: Which of them: ``multiclass``, ``multilabel`` or ``regression``. Of others nothing is known.
        num_classes: Number of classes.
        measured: Which samples must have a label, bool ``[N]``.

    Example:
        >>> label_faults(np.array([0, -1, 7]), "multiclass", 2, np.zeros(3, bool))
        {2: Fault(kind='label', reason='its label is 7; it must be a class id from 0 to 1')}
    """
    if task == "multiclass":
        right, allowed = (labels >= 0) & (labels < num_classes), f"a class id from 0 to {num_classes - 1}"
        right |= (labels == NO_LABEL) & ~measured
    elif task == "multilabel":
        right, allowed = (labels == 0) | (labels == 1), "0 or 1 for each label"
    elif task == "regression":
        right, allowed = np.isfinite(labels), "finite"
    else:
        return {}
    wrong = np.flatnonzero(~right.reshape(len(labels), -1).all(axis=1)).tolist()
    return {i: Fault("label", f"its label is {label_text(labels[i])}; it must be {allowed}") for i in wrong}


def label_text(label: Any) -> str:
    """A target as it stands in tables.

    Example:
        >>> label_text(np.array([0.5, 2.0], np.float32))
        '0.5 2'
    """
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in np.ravel(label).tolist())


def processes(datamodule: KeyedDataModule) -> int:
    """How many read the samples; 0: this one."""
    if datamodule.num_workers is not None:
        return datamodule.num_workers
    return 0 if datamodule.in_memory or len(datamodule.labels) < FEW else reader_count()


def _looks(datamodule: KeyedDataModule) -> Iterator[Look | Fault]:
    """What is kept of each sample, in order."""
    workers = processes(datamodule)
    for batch in DataLoader(_Looks(datamodule), 32, collate_fn=list, num_workers=workers, worker_init_fn=quiet_opencv):
        yield from batch


class _Looks(Dataset):
    """Without the datamodule, which need not be fit to travel to a process."""

    def __init__(self, datamodule: KeyedDataModule) -> None:
        self.samples, self.keys = datamodule.samples, datamodule.keys
        self.num_classes, self.ignored = datamodule.num_classes, ignored_in_masks(datamodule)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Look | Fault:
        try:
            return look_at(self.samples[index], self.num_classes, self.ignored)
        except BadSampleError as error:
            path, key = Path(error.path).as_posix(), self.keys[index]
            place = "" if path == key or path.endswith(f"/{key}") or not error.path else f"{error.path}: "
            return Fault("unreadable", f"{place}{error.reason}. {error.remedy}".rstrip())
        except Exception as error:  # what a reader of the user's own raises; the others are wanted all the same
            return Fault("unreadable", f"reading it raised {type(error).__name__}: {error}")


def ignored_in_masks(datamodule: KeyedDataModule) -> int:
    """The class id of pixels without a class."""
    return getattr(datamodule, "ignore_index", 255)
