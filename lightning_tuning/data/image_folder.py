"""Images in folders, one for each class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_tuning.data.encoded_images import EncodedImageDataModule
from lightning_tuning.data.image_files import ENDINGS, ImageFiles, find_images
from lightning_tuning.data.targets import read_targets
from lightning_tuning.errors import InvalidValueError

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
UNLABELED = ("unlabeled", "unlabelled")


class ImageFolderDataModule(EncodedImageDataModule):
    """Images in a folder for each class: ``cats/1.jpg``, or with given parts ``train/cats/1.jpg`` and ``test/...``.

    The classes are numbered by number if all their names are integers, and else by alphabet. The parts' folders are
    called ``train``, ``val`` (or ``valid``, ``validation``) and ``test``, in small or capital letters; a part without
    one is taken from ``train``. Images in a folder ``unlabeled`` beside them have no label: with
    ``unlabeled_batch_size`` they are unlabelled samples like the others. Folders may have folders in them. Batches,
    views and attributes are those of :class:`EncodedImageDataModule`.

    Args:
        path: The folder.
        group: A regular expression whose first group, found in an image's path, says what the image
            belongs to: ``(patient\\d+)_`` keeps all images of a patient in one part. None: every image is its own.
        **kwargs: See :class:`EncodedImageDataModule`.

    Raises:
        InvalidValueError: The folder does not exist or holds something else.
    """

    def __init__(self, path: str, group: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("path", "group", logger=False)
        self.path = path
        self.group = group
        try:
            self._group = None if group is None else re.compile(group)
        except re.error as error:
            raise InvalidValueError(f"group is {group!r}, which is no regular expression: {error}.") from None
        if self._group is not None and not self._group.groups:
            raise InvalidValueError(f"group is {group!r}; it needs a group in brackets, as in '({group})_'.")
        if not Path(path).is_dir():
            raise InvalidValueError(f"There is no folder {Path(path).absolute()}; data.path is {path!r}.")

    def load(self) -> tuple[ImageFiles, np.ndarray]:
        """The images, by part and class, and their class ids."""
        root = Path(self.path)
        files: list[Path] = []
        classes: list[str] = []
        parts: list[str] = []
        others: list[Path] = []
        given, class_folders = _layout(root)
        for part, folder in class_folders:
            found, strange = find_images(folder)
            others += strange
            if not found:
                raise InvalidValueError(
                    f"The class folder {folder} holds no image; their names end in {', '.join(sorted(ENDINGS))}. "
                    "Remove the folder, or put its images there."
                )
            files += found
            classes += [folder.name] * len(found)
            parts += [part] * len(found)
        _check_classes(root, classes, parts)
        labels, self.class_names = read_targets({"class": classes}, "multiclass", self.path)
        self.num_classes = len(self.class_names)
        for name in UNLABELED:
            found, strange = find_images(root / name) if (root / name).is_dir() else ([], [])
            files, others = files + found, others + strange
            parts += ["train"] * len(found)
            labels = np.append(labels, np.full(len(found), -1))
        if not self.keys:  # told once
            _tell(others, "its name does not end like that of an image", "their names do not end like those of images")
            without = _without_class(sorted({root, *(folder.parent for _, folder in class_folders)}))
            _tell(without, "it is in no class folder", "they are in no class folder")
            for _, folder in class_folders:
                if not given and folder.name.lower() in PARTS:
                    rank_zero_warn(
                        f"{folder} is taken for a class, as there is no folder train beside it. If it is a part, call "
                        "the folder for training train."
                    )
        self.given_parts = np.array(parts) if given else None
        self.keys = [path.relative_to(root).as_posix() for path in files]
        self.groups = self._groups(self.keys)
        return ImageFiles(files, self.in_channels, self.max_pixels), labels

    def _groups(self, keys: Sequence[str]) -> np.ndarray | None:
        if self._group is None:
            return None
        found = [self._group.search(key) for key in keys]
        groups = [None if match is None else match[1] for match in found]
        without = [key for key, group in zip(keys, groups, strict=True) if group is None]
        if without:
            raise InvalidValueError(
                f"group is {self.group!r}, which is not in {without[0]!r} and {len(without) - 1} other paths. "
                "It must be found in every image's path."
            )
        return np.array(groups)


def _layout(root: Path) -> tuple[bool, list[tuple[str, Path]]]:
    """Whether the folder gives parts, and part and folder of each class."""
    folders = [path for path in _folders(root) if path.name not in UNLABELED]
    parts = [path for path in folders if path.name.lower() in PARTS]
    if not any(PARTS[path.name.lower()] == "train" for path in parts):
        if not folders:
            raise InvalidValueError(
                f"{root} holds no folder. There must be one for each class, as in {root}/cats/1.jpg, or train and test "
                f"with one for each class, as in {root}/train/cats/1.jpg."
            )
        if len(parts) == len(folders):
            raise InvalidValueError(
                f"{root} holds {' and '.join(path.name for path in parts)}, but no train. There must be one."
            )
        return False, [("train", path) for path in folders]
    if len(parts) < len(folders):
        stray = next(path for path in folders if path not in parts)
        raise InvalidValueError(
            f"{root} holds {parts[0].name} and {stray.name}. Beside {parts[0].name} there may be val, test and "
            "unlabeled; the folders of the classes stand in them."
        )
    astray = next((part / name for part in parts for name in UNLABELED if (part / name).is_dir()), None)
    if astray is not None:
        raise InvalidValueError(f"{astray} would be a class. Images without a label belong in {root / astray.name}.")
    return True, [(PARTS[part.name.lower()], path) for part in parts for path in _folders(part)]


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _without_class(folders: list[Path]) -> list[Path]:
    """The images that stand in the folders themselves."""
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    return [path for path in files if path.suffix[1:].lower() in ENDINGS and not path.name.startswith(".")]


def _tell(files: list[Path], why: str, why_many: str) -> None:
    if len(files) == 1:
        rank_zero_warn(f"{files[0]} is left out, as {why}.")
    elif files:
        rank_zero_warn(f"{len(files)} files are left out, as {why_many}, such as {files[0]}.")


def _check_classes(root: Path, classes: list[str], parts: list[str]) -> None:
    """Whether training has every class."""
    sizes = Counter(zip(parts, classes, strict=True))
    missing = sorted({name for part, name in sizes if ("train", name) not in sizes})
    if missing:
        raise InvalidValueError(
            f"{root}: training has no image of {', '.join(map(repr, missing))}, but val or test has."
        )
    if not classes:
        raise InvalidValueError(f"{root}: the folders of the parts hold no folders of classes.")
