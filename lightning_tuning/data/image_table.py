"""Images that a table names, with their labels, values or masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.encoded_images import EncodedImageDataModule
from lightning_tuning.data.image_files import ImageFiles, MaskedImages
from lightning_tuning.data.targets import TASKS, read_classes, read_weights
from lightning_tuning.data.text_table import read_table
from lightning_tuning.errors import InvalidValueError, check_choice, did_you_mean

_PARTS = ("train", "val", "test")


class ImageTableDataModule(EncodedImageDataModule):
    """Images whose paths stand in a table (CSV, TSV or Parquet) beside their labels, values or masks.

    ``y`` is int64 ``[N]``, float32 ``[N, K]`` of 0 and 1, float32 ``[N, D]``, or, with ``mask``, the class id of each
    pixel, int64 ``[N, H, W]``. With ``unlabeled_batch_size`` a row's class may be left empty: its image is an
    unlabelled sample. Batches, views and attributes are those of :class:`EncodedImageDataModule`.

    Args:
        path: The table: ``.csv``, ``.tsv`` or ``.parquet``, with the columns' names in the first line.
        image: The column of the images' paths, relative to ``root``.
        target: The column of the targets, or a list of columns. With ``mask`` it is not read.
        task: ``multiclass``: ``target`` holds the classes' names. ``multilabel``: each of its columns is 1 where an
            image has the label, else 0. ``regression``: its columns are values.
        mask: The column of the masks' paths, indexed or grey PNGs of class ids; 255 is a pixel without a class. None:
            there are no masks.
        drawn_on: Whether masks without an EXIF rotation of their own were drawn on the images as they are ``stored`` or
            as they are ``shown``; ``auto``: as the sizes tell, and an error where they do not.
        classes: The classes' names, by id. With ``mask`` they are needed. None: those that ``target`` holds, numbered
            by number if all are integers, and else by alphabet.
        root: The folder that all paths must be in. None: the table's.
        group: A column that says what an image belongs to, such as a patient. No group is in two parts. None: every
            image is its own.
        weight: A column of numbers: how often a labelled image is drawn in training, in proportion. None: each once in
            a pass.
        part: A column that holds ``train``, ``val`` or ``test``. None: the parts are drawn.
        delimiter: What separates the fields, one character. None: a comma or a tab, by the file's name.
        **kwargs: See :class:`EncodedImageDataModule`.

    Raises:
        InvalidValueError: An argument is not allowed, or the table is no such table.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        target: str | list[str] = "label",
        task: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        mask: str | None = None,
        drawn_on: Literal["auto", "stored", "shown"] = "auto",
        classes: list[str] | None = None,
        root: str | None = None,
        group: str | None = None,
        weight: str | None = None,
        part: str | None = None,
        delimiter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("task", task, TASKS)
        check_choice("drawn_on", drawn_on, ("auto", "stored", "shown"))
        if mask is not None and not classes:
            raise InvalidValueError(f"mask is {mask!r}, so classes is needed: the names of the classes, by class id.")
        if mask is not None and self.unlabeled_batch_size:
            raise InvalidValueError(
                "unlabeled_batch_size is for labels, not for masks: two views of an image do not show the same at the "
                "same pixel. Write unlabeled_batch_size=0."
            )
        if classes is not None and task != "multiclass":
            raise InvalidValueError(f"classes is for task='multiclass' and for masks, but task is {task!r}.")
        if classes is not None and len(set(classes)) < len(classes):
            raise InvalidValueError(f"classes is {classes!r}; each name may stand there once.")
        if mask is not None and len(classes or ()) > self.ignore_index:
            raise InvalidValueError(
                f"classes has {len(classes or ())} names; with mask at most {self.ignore_index}, as a pixel of "
                f"{self.ignore_index} has no class."
            )
        self.path = path
        self.image = image
        self.target = [target] if isinstance(target, str) else list(target)
        self.task = task if mask is None else "segmentation"
        self.mask = mask
        self.drawn_on = drawn_on
        self.classes = classes
        self.root = root
        self.group = group
        self.weight = weight
        self.part = part
        self.delimiter = delimiter

    def load(self) -> tuple[Sequence[Any], np.ndarray]:
        """The images, or images and masks, and the targets."""
        targets = [] if self.mask else self.target
        columns = [name for name in (self.image, self.mask, self.group, self.weight, self.part) if name]
        blank = self.task == "multiclass" and self.unlabeled_batch_size > 0
        required = [*columns, *([] if blank else targets)]
        table = read_table(self.path, [*columns, *targets], required, self.delimiter)
        root = Path(self.root) if self.root is not None else Path(self.path).parent
        paths = self._paths(root, self.image, table[self.image])
        self.keys = self._keys(root, paths)
        self.groups = np.array(table[self.group]) if self.group else None
        self.weights = read_weights(self.weight, table[self.weight], self.path) if self.weight else None
        self.given_parts = self._parts_of(table[self.part]) if self.part else None
        images = ImageFiles(paths, self.in_channels, self.max_pixels)
        if self.mask:
            self.class_names = tuple(self.classes or ())
            self.num_classes = len(self.class_names)
            masks = self._paths(root, self.mask, table[self.mask])
            pairs = MaskedImages(images, masks, self.num_classes, self.ignore_index, self.drawn_on)
            return pairs, np.zeros(len(images), dtype=np.int64)
        labels, self.class_names = self._targets({name: table[name] for name in targets})
        self.num_classes = len(self.class_names)
        return images, labels

    def _targets(self, columns: dict[str, list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
        labels, names = read_classes(columns, self.task, self.path, blank=True)
        if self.task != "multiclass":
            return labels, names
        self._check_parts(labels, names)
        if self.classes is None:
            return labels, names
        for row, field in enumerate(columns[self.target[0]], start=1):
            if field.strip() and field not in self.classes:
                raise InvalidValueError(
                    f"{self.path}, row {row}: {self.target[0]!r} is {field!r}{did_you_mean(field, self.classes)} It "
                    f"must be one of classes: {', '.join(map(repr, self.classes))}."
                )
        ids = np.array([self.classes.index(name) for name in names])
        return np.where(labels >= 0, ids[labels], -1), tuple(self.classes)

    def _check_parts(self, labels: np.ndarray, names: tuple[str, ...]) -> None:
        """Whether validation and test, as they are given, can be measured by what training has."""
        if self.given_parts is None:
            return
        held_out = self.given_parts != "train"
        if (held_out & (labels < 0)).any():
            row = int(np.flatnonzero(held_out & (labels < 0))[0])
            raise InvalidValueError(
                f"{self.path}, row {row + 1}: {self.target[0]!r} is empty, but {self.part!r} is "
                f"{str(self.given_parts[row])!r}. Only rows of train may go without a label."
            )
        missing = np.setdiff1d(labels[held_out], labels[~held_out])
        if len(missing):
            raise InvalidValueError(
                f"{self.path}: training has no row of {', '.join(repr(names[label]) for label in missing)}, but val or "
                "test has."
            )

    def _keys(self, root: Path, paths: list[str]) -> list[str]:
        keys = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
        rows: dict[str, int] = {}
        for row, key in enumerate(keys, start=1):
            first = rows.setdefault(key, row)
            if first != row:
                raise InvalidValueError(
                    f"{self.path}: rows {first} and {row} are of the same image, {key!r}. Each image may have one row."
                )
        return keys

    def _parts_of(self, names: list[str]) -> np.ndarray:
        for row, name in enumerate(names, start=1):
            if name not in _PARTS:
                raise InvalidValueError(
                    f"{self.path}, row {row}: {self.part!r} is {name!r}; it must be one of {', '.join(_PARTS)}."
                )
        return np.array(names)

    def _paths(self, root: Path, column: str, names: list[str]) -> list[str]:
        """The files; none may lie outside the root."""
        top = os.path.abspath(root)
        paths = [os.path.normpath(os.path.join(top, name)) for name in names]
        for row, (name, path) in enumerate(zip(names, paths, strict=True), start=1):
            if not Path(path).is_relative_to(top):
                raise InvalidValueError(
                    f"{self.path}, row {row}: {column!r} is {name!r}, which is outside of {top}. Paths must stay in "
                    "that folder; write root=... if it is another one."
                )
        missing = [path for path in paths if not os.path.isfile(path)] if self.on_bad_sample == "raise" else []
        if missing:
            remedy = "Correct the paths or root, or write on_bad_sample='skip' to go without up to 1 %."
            if "\\" in missing[0] and os.sep == "/":
                remedy = "Write / in place of \\ in the paths."
            what = f"it does not exist, as {len(missing)} of the {len(paths)} files that {self.path} names"
            raise BadSampleError(missing[0], what, remedy)
        return paths
