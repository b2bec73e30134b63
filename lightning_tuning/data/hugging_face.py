"""Images of datasets of the Hugging Face library `datasets`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_tuning.data.encoded_images import EncodedImageDataModule
from lightning_tuning.data.fields import as_field
from lightning_tuning.data.hugging_face_images import HuggingFaceImages
from lightning_tuning.data.targets import TASKS, read_weights
from lightning_tuning.data.typed_targets import read_typed_targets
from lightning_tuning.errors import InvalidValueError, check_choice, did_you_mean

_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes into its folder: the one for several splits, the other for one."""


class HuggingFaceDataModule(EncodedImageDataModule):
    """Batches of :class:`EncodedImageDataModule` from a dataset of the Hugging Face library ``datasets``, which
    ``pip install 'lightning-tuning[datasets]'`` brings along.

    Images are decoded here and not by the library, so that 16 bits, EXIF rotation and CMYK come out right and bad ones
    are found. Samples whose class is -1 or None, which stands for none, are unlabelled ones of the training part.
    Texts and tables: ``dataset.to_csv("a.csv")`` or ``dataset.to_parquet("a.parquet")`` writes what
    :class:`TextDataModule` and :class:`TableDataModule` read.

    Args:
        path: What ``datasets.load_dataset`` takes, or a folder that ``save_to_disk`` wrote.
        name: The dataset's configuration, as ``load_dataset`` takes it.
        split: The split for training, such as ``train`` or ``train[:80%]``. Parts that have no split of their own are
            taken from it.
        val_split: The split for validation. None: it is taken from ``split``.
        test_split: The split for testing. None: it is taken from ``split``.
        image: The column of the images: of the type ``Image``, bytes of image files, or arrays of integers from 0 to
            255, ``[H, W]`` or ``[H, W, C]``.
        target: The column of the targets, or a list of columns.
        task: ``multiclass``: ``target`` holds classes. ``multilabel``: each of its columns is 1 where a sample has the
            label, else 0; or it is one column with lists of the labels. ``regression``: its columns are values.
        group: A column that says what an image belongs to. No group is in two parts. None: every image is its own.
        weight: A column of numbers: how often a labelled image is drawn in training, in proportion. None: each once in
            an epoch.
        **kwargs: See :class:`EncodedImageDataModule`.

    Raises:
        InvalidValueError: The library is missing, or there is no such dataset, split or column.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        image: str = "image",
        target: str | list[str] = "label",
        task: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        group: str | None = None,
        weight: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("task", task, TASKS)
        self.path = path
        self.name = name
        self.split = split
        self.val_split = val_split
        self.test_split = test_split
        self.image = image
        self.target = [target] if isinstance(target, str) else list(target)
        self.task = task
        self.group = group
        self.weight = weight
        columns = [image, *self._columns]
        if not self.target or len({*columns}) < len(columns):
            raise InvalidValueError(
                f"image is {image!r}, target {target!r}, group {group!r} and weight {weight!r}; they must be different "
                "columns."
            )

    def load(self) -> tuple[HuggingFaceImages, np.ndarray]:
        """The images, and the targets of the same rows."""
        library = _library()
        wanted = {"train": self.split, "val": self.val_split, "test": self.test_split}
        splits = {part: split for part, split in wanted.items() if split is not None}
        if len({*splits.values()}) < len(splits):
            raise InvalidValueError(f"split, val_split and test_split are {[*wanted.values()]}; they must differ.")
        tables = {split: self._table(library, split) for split in splits.values()}
        lengths = [len(table) for table in tables.values()]
        self.given_parts = parts = np.repeat([*splits], lengths)
        self.keys = [f"{split}/{row}" for split, table in tables.items() for row in range(len(table))]
        columns = {name: _values(tables, name) for name in self._columns}
        self.groups = np.array(self._fields(self.group, columns)) if self.group else None
        if self.weight:
            self.weights = read_weights(self.weight, self._fields(self.weight, columns), self.path)
        feature = tables[self.split].features[self.target[0]]
        names = getattr(getattr(feature, "feature", feature), "names", None)  # of a list, or itself
        labels, self.class_names = read_typed_targets(columns, self.task, self.path, names)
        self.num_classes = len(self.class_names)
        self._check_known(labels, parts)
        images = {f"{self.path}/{split}": self._images(library, table) for split, table in tables.items()}
        return HuggingFaceImages(images, self.image, self.in_channels, self.max_pixels), labels

    @property
    def _columns(self) -> list[str]:
        return [*self.target, *(name for name in (self.group, self.weight) if name)]

    def _fields(self, name: str, columns: dict[str, list[Any]]) -> list[str]:
        """Take a column out, as text."""
        values = zip(self.keys, columns.pop(name), strict=True)
        return [as_field(value, f"{self.path}, {key}: {name!r}") for key, value in values]

    def _table(self, library: Any, split: str) -> Any:
        """One split, with the columns that are needed."""
        table = self._load(library, split).with_format(None)
        if not len(table):
            raise InvalidValueError(f"{self.path}, split {split!r}, has no rows.")
        for column in (self.image, *self._columns):
            if column not in table.features:
                raise InvalidValueError(
                    f"{self.path}, split {split!r}, has no column {column!r}{did_you_mean(column, table.features)} It "
                    f"has {', '.join(map(repr, table.features))}."
                )
        return table

    def _load(self, library: Any, split: str) -> Any:
        is_saved = any(Path(self.path, file).is_file() for file in _SAVED)
        if is_saved and self.name is not None:
            raise InvalidValueError(
                f"name is {self.name!r}, but {self.path} was saved to disk, without configurations. Leave it out."
            )
        try:
            if not is_saved:
                return library.load_dataset(self.path, self.name, split=split)
            saved = library.load_from_disk(self.path)
        except (OSError, ValueError, library.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())
            raise InvalidValueError(f"The dataset {self.path!r} cannot be loaded: {reason}") from None
        saved = saved if isinstance(saved, dict) else {"train": saved}
        if split not in saved:
            raise InvalidValueError(f"{self.path} has no split {split!r}; it has {', '.join(map(repr, saved))}.")
        return saved[split]

    def _images(self, library: Any, table: Any) -> Any:
        """The column of the images, not decoded."""
        feature = table.features[self.image]
        rows = table.select_columns([self.image])
        if isinstance(feature, library.Image):
            return rows.cast_column(self.image, library.Image(decode=False))
        if not isinstance(feature, library.Value):
            return rows.with_format("numpy")
        if feature.dtype not in ("binary", "large_binary"):
            raise InvalidValueError(
                f"{self.path}: the column {self.image!r} is {feature.dtype}; it must hold images, bytes or arrays. Of "
                f"paths, `dataset.cast_column({self.image!r}, datasets.Image())` makes images."
            )
        return rows

    def _check_known(self, labels: np.ndarray, parts: np.ndarray) -> None:
        """Whether labels are missing where they may not be; a sample without one is trained on, whatever its split."""
        if self.task != "multiclass":
            return
        unknown = np.flatnonzero((labels < 0) & ((parts != "train") | (self.unlabeled_batch_size == 0)))
        if len(unknown):
            held_out = parts[unknown[0]] != "train"
            raise InvalidValueError(
                f"{self.path}: {len(unknown)} rows have no class, such as {self.keys[unknown[0]]}. "
                + ("Leave their split out." if held_out else "Take them out, or use them: unlabeled_batch_size=...")
            )


def _library() -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        library = None
    if not hasattr(library, "load_dataset"):  # a folder of this name can be imported too
        raise InvalidValueError("HuggingFaceDataModule needs datasets: run `pip install 'lightning-tuning[datasets]'`.")
    return library


def _values(tables: dict[str, Any], column: str) -> list[Any]:
    """A column of all splits."""
    features = {split: table.features[column] for split, table in tables.items()}
    (first, feature), *others = features.items()
    for split, other in others:
        if other != feature:
            raise InvalidValueError(f"{column!r} is {feature} in split {first!r}, but {other} in {split!r}.")
    return [value for table in tables.values() for value in table.select_columns([column])[:][column]]
