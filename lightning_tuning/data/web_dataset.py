"""Images in tar files of the WebDataset convention."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_tuning.data.encoded_images import EncodedImageDataModule
from lightning_tuning.data.tar_images import TarImages
from lightning_tuning.data.tar_index import shard_paths
from lightning_tuning.data.tar_table import TarTable, joined, read_tars
from lightning_tuning.data.targets import TASKS, read_targets, read_weights
from lightning_tuning.errors import InvalidValueError, check_choice

_UNLABELED = "unlabeled"
ENDINGS = "jpg;jpeg;png;webp;bmp;gif;ppm;pgm;tif;tiff"


class WebDatasetDataModule(EncodedImageDataModule):
    """Batches of :class:`EncodedImageDataModule` whose images lie in tar files of the WebDataset convention.

    A sample is all that shares its name up to the first dot: ``0001.jpg`` and ``0001.cls``, or ``0001.json``, one
    behind the other. The files are indexed once, in ``setup``, and images are then read by their place: nothing is
    extracted, and unlike in WebDataset the order is that of a seed, from all samples and not from a buffer. So the
    files must be local and not compressed.

    Args:
        path: A tar file, a pattern such as ``shards/train-*.tar``, or a range such as ``shards/train-{000..099}.tar``.
            Parts that have no path of their own are taken from here.
        val_path: The tar files of the validation part. None: it is taken from ``path``.
        test_path: The tar files of the test part. None: it is taken from ``path``.
        unlabeled_path: Tar files of samples without a class, for ``multiclass``: with ``unlabeled_batch_size`` they are
            unlabelled samples like the others. No ``target`` is read from them.
        image: The endings of images, with semicolons between. A sample's image is the first of these that it has.
        target: ``cls``, the ending of the member that holds the class, its number or its name; or ``json.label``, an
            entry of the ``.json`` member; or a list of such.
        task: ``multiclass``: ``target`` is the class. ``multilabel``: each target is 1 where a sample has the label,
            else 0. ``regression``: the targets are values.
        group: What a sample belongs to, such as ``json.patient``, named as a target is. No group is in two parts. None:
            every sample is its own.
        weight: A number, named likewise: how often a labelled sample is drawn in training, in proportion. None: each
            once in an epoch.
        **kwargs: See :class:`EncodedImageDataModule`.

    Raises:
        InvalidValueError: A file is missing, truncated or no plain tar file; a sample has no image or no target.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        test_path: str | None = None,
        unlabeled_path: str | None = None,
        image: str = ENDINGS,
        target: str | list[str] = "cls",
        task: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        group: str | None = None,
        weight: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("task", task, TASKS)
        self.path = path
        self.val_path = val_path
        self.test_path = test_path
        self.unlabeled_path = unlabeled_path
        self.image = image
        self.target = [target] if isinstance(target, str) else list(target)
        self.task = task
        self.group = group
        self.weight = weight
        if unlabeled_path is not None and task != "multiclass":
            raise InvalidValueError(
                f"unlabeled_path is for task='multiclass', but task is {task!r}. Leave it out: samples without targets "
                "are of no use there."
            )
        self._shards()  # a path that is wrong is told now
        self._indexed: tuple[list, TarTable] | None = None

    def load(self) -> tuple[TarImages, np.ndarray]:
        """The images, and the targets that stand beside them."""
        parts, shards = zip(*self._shards(), strict=True)
        first = parts.index(_UNLABELED) if _UNLABELED in parts else len(parts)
        table = self._index(shards, first)
        numbers = table.places[:, 0]
        held = np.array(parts)[numbers]
        for part in {*parts} - {*held.tolist()}:
            raise InvalidValueError(f"{self._paths[part]} holds no sample, such as 0001.jpg and 0001.cls.")
        self.given_parts = np.where(held == _UNLABELED, "train", held)
        names = _below_their_folder(shards)
        self.keys = [f"{names[number]}/{name}" for number, name in zip(numbers, table.names, strict=True)]
        self.groups = np.array(table.fields[self.group]) if self.group else None
        columns = {name: table.fields[name] for name in self.target}
        labels, self.class_names = read_targets(columns, self.task, self.path)
        self.num_classes = len(self.class_names)
        self.weights = read_weights(self.weight, table.fields[self.weight], self.path) if self.weight else None
        if self.unlabeled_path is not None:
            without = np.sum(held == _UNLABELED)
            labels = np.append(labels, np.full(without, -1))
            self.weights = np.append(self.weights, np.zeros(without)) if self.weights is not None else None
        return TarImages(shards, table.places, table.names, self.in_channels, self.max_pixels), labels

    def _index(self, shards: Sequence[str], first: int) -> TarTable:
        """What the tar files hold, which is read again if one of them changes.

        Args:
            shards: The tar files.
            first: Number of the first of those whose samples have no target; they are the last.
        """
        state = [(shard, os.stat(shard).st_size, os.stat(shard).st_mtime_ns) for shard in shards]
        if self._indexed is None or self._indexed[0] != state:
            endings, group = self.image.split(";"), [self.group] if self.group else []
            weight = [self.weight] if self.weight else []
            labeled = read_tars(shards[:first], endings, [*self.target, *group, *weight])
            self._indexed = state, joined(labeled, read_tars(shards[first:], endings, group), first)
        return self._indexed[1]

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.path, "val": self.val_path, "test": self.test_path, _UNLABELED: self.unlabeled_path}

    def _shards(self) -> list[tuple[str, str]]:
        """Part and path of each tar file."""
        return [(part, file) for part, path in self._paths.items() if path is not None for file in shard_paths(path)]


def _below_their_folder(files: Sequence[str]) -> list[str]:
    """The names of files below the folder that they share, with forward slashes."""
    full = [os.path.abspath(file) for file in files]
    twice = next((file for file, count in Counter(full).items() if count > 1), None)
    if twice is not None:
        raise InvalidValueError(f"{twice} is in two of path, val_path, test_path and unlabeled_path.")
    folder = os.path.commonpath([os.path.dirname(file) for file in full])
    return [Path(os.path.relpath(file, folder)).as_posix() for file in full]
