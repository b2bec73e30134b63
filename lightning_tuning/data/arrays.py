"""Images and labels in arrays: one ``.npz`` file, or a folder of ``.npy`` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.data.parts import Parts
from lightning_tuning.data.stored_images import StoredImages, resized
from lightning_tuning.errors import InvalidValueError

_NAMES = {"x_train": "xtr", "y_train": "ytr", "x_test": "xte", "y_test": "yte"}


class ArrayDataModule(ImageDataModule):
    """Images and labels from one ``.npz`` file, such as the ones MNIST and Fashion-MNIST are spread as, or from a
    folder of ``.npy`` files.

    The file holds the arrays ``x_train``, uint8 ``[N, H, W]`` or ``[N, H, W, C]`` with ``H == W``, ``y_train``, integer
    class ids ``[N]`` from 0 (with ``unlabeled_batch_size`` also -1, for an image without a label), and, if there is a
    test set of its own, ``x_test`` and ``y_test``; ``xtr``, ``ytr``, ``xte``, ``yte`` will do as well.
    ``numpy.savez_compressed("data.npz", x_train=..., ...)`` writes one. A folder holds the same as ``x_train.npy`` and
    so on; its images stay on disk and are mapped into memory, so they may be more than fit there. Pickled objects are
    refused. Batches, views and attributes are those of :class:`ImageDataModule`.

    Args:
        path: The file or the folder.
        image_size: Height and width in pixels to which the images are resized, at least 4. None: as they are.
        val_size: Number of training images kept for validation, at least 0, or their share, in (0, 1); 0: no
            validation.
        test_size: Number or share of test images, of ``x_test`` if there is one, else of ``x_train``. None: all of
            ``x_test``, or a sixth of ``x_train``.
        **kwargs: See :class:`ImageDataModule`.

    Raises:
        InvalidValueError: The file does not exist or holds something else.
    """

    def __init__(
        self,
        path: str,
        image_size: int | None = None,
        val_size: int | float | None = 0,
        test_size: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size or 4, val_size=val_size, test_size=test_size, **kwargs)
        self.save_hyperparameters("path", "image_size", logger=False)
        self.path = path
        self.image_size = image_size  # type: ignore[assignment]  # known in setup
        with _opened(path) as arrays:
            missing = [name for name in ("x_train", "y_train") if _key(arrays, name) is None]
            if missing:
                raise InvalidValueError(
                    f"{path} has no array {missing[0]}; it has {', '.join(arrays) or 'none'}. Write it with "
                    "numpy.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)."
                )

    def load(self) -> tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray]:
        """The training images and, behind them, the test images, with their class ids."""
        with _opened(self.path) as arrays:
            read = {"train": self._read(arrays, "x_train", "y_train")}
            if _key(arrays, "x_test") is not None:
                read["test"] = self._read(arrays, "x_test", "y_test")
                shapes = [list(images.shape[1:]) for images, _ in read.values()]
                if shapes[0] != shapes[1]:
                    raise InvalidValueError(
                        f"{self.path}: the images of x_test are {shapes[1]}, those of x_train {shapes[0]}; they must "
                        "be of one size."
                    )
                self.given_parts = np.repeat([*read], [len(labels) for _, labels in read.values()])
            files = [arrays.file(_key(arrays, f"x_{part}")) for part in read] if isinstance(arrays, _Folder) else []
        labels = np.concatenate([labels for _, labels in read.values()])
        size, self.in_channels = read["train"][0].shape[2:]
        self.num_classes = int(labels.max()) + 1
        self.class_names = tuple(map(str, range(self.num_classes)))
        self.image_size = self.image_size or size
        if files:
            return StoredImages(files, self.image_size), labels
        images = np.concatenate([images for images, _ in read.values()])
        if size != self.image_size:
            images = np.stack([resized(image, self.image_size) for image in images])
        return images, labels

    def _read(self, arrays: Any, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
        key = _key(arrays, labels_name)
        if key is None:
            raise InvalidValueError(f"{self.path} has {images_name} but no {labels_name}.")
        try:
            images, labels = arrays[_key(arrays, images_name)], arrays[key]
        except (ValueError, EOFError) as error:  # an array of pickled objects, or a file that is cut off
            raise InvalidValueError(
                f"{self.path}: {images_name} or {labels_name} holds objects or is no whole array: {error}"
            ) from None
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise InvalidValueError(
                f"{self.path}: {images_name} is {images.dtype} {list(images.shape)}; it must be uint8 [N, H, W] or "
                "[N, H, W, C] with H == W."
            )
        if not len(images):
            raise InvalidValueError(f"{self.path}: {images_name} holds no image.")
        least = -1 if self.unlabeled_batch_size and labels_name == "y_train" else 0
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < least:
            raise InvalidValueError(
                f"{self.path}: {labels_name} is {labels.dtype} {list(labels.shape)}; it must be integer class ids from "
                f"0, one for each of the {len(images)} images. -1, for none, goes with unlabeled_batch_size."
            )
        if labels.max() < 0:
            raise InvalidValueError(f"{self.path}: {labels_name} holds no label but -1; some images must have one.")
        return images, labels.astype(np.int64)

    def make_parts(self) -> Parts:
        """The file's own test images are the test part; without them a sixth of the training images."""
        if self.given_parts is None and self.test_size is None:
            self.test_size = int(self.known.sum()) // 6
        return super().make_parts()


class _Folder:
    """The ``.npy`` files of a folder, as a loaded ``.npz`` file gives its arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return (file.stem for file in sorted(self.path.glob("*.npy")))

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.file(name), mmap_mode="r", allow_pickle=False)

    def file(self, name: str | None) -> Path:
        return self.path / f"{name}.npy"


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The arrays by name."""
    if Path(path).is_dir():
        yield _Folder(Path(path))
        return
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InvalidValueError(f"There is no file {Path(path).absolute()}; data.path is {path!r}.") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise InvalidValueError(f"{path} cannot be read as .npz: {error}") from None
    if not hasattr(arrays, "files"):
        raise InvalidValueError(
            f"{path} holds a single array; it must be .npz with x_train and y_train, or a folder with x_train.npy and "
            "y_train.npy."
        )
    with arrays:
        yield arrays


def _key(arrays: Any, name: str) -> str | None:
    return next((key for key in (name, _NAMES[name]) if key in [*arrays]), None)
