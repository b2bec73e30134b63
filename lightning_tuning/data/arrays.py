"""Images and labels in one ``.npz`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np

from lightning_tuning.data.image_datamodule import ImageDataModule
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.errors import InvalidValueError

_NAMES = {"x_train": "xtr", "y_train": "ytr", "x_test": "xte", "y_test": "yte"}


class ArrayDataModule(ImageDataModule):
    """Images and labels from one ``.npz`` file, such as the ones MNIST and Fashion-MNIST are spread as.

    The file holds the arrays ``x_train``, uint8 ``[N, H, W]`` or ``[N, H, W, C]`` with ``H == W``, ``y_train``, integer
    class ids ``[N]`` from 0, and, if there is a test set of its own, ``x_test`` and ``y_test``; ``xtr``, ``ytr``,
    ``xte``, ``yte`` will do as well. ``numpy.savez_compressed("data.npz", x_train=..., ...)`` writes one. Pickled
    objects in it are refused. Batches, views and attributes are those of :class:`ImageDataModule`.

    Args:
        path: The file.
        image_size: Height and width in pixels to which the images are resized, at least 4. None: as they are.
        val_size: Number of training images kept for validation, at least 0; 0: no validation.
        test_size: Number of test images, at least 0, of ``x_test`` if the file has it, else of ``x_train``. None: all
            of ``x_test``, or a sixth of ``x_train``.
        **kwargs: See :class:`ImageDataModule`.

    Raises:
        InvalidValueError: The file does not exist or holds something else.
    """

    def __init__(
        self,
        path: str,
        image_size: int | None = None,
        val_size: int = 0,
        test_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size or 4, val_size=val_size, test_size=test_size or 0, **kwargs)
        self.save_hyperparameters("path", "image_size", "test_size", logger=False)
        self.path = path
        self.image_size = image_size  # type: ignore[assignment]  # known in setup
        self._wanted_test_size = test_size
        self._num_given = 0  # training images of the file, which come first
        with _open(path) as arrays:
            missing = [name for name in ("x_train", "y_train") if _key(arrays, name) is None]
            if missing:
                raise InvalidValueError(
                    f"{path} has no array {missing[0]}; it has {', '.join(arrays.files) or 'none'}. Write it with "
                    "numpy.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)."
                )

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """The training images and, behind them, the test images, with their class ids."""
        images, labels = self._read("x_train", "y_train")
        self._num_given = len(labels)
        with _open(self.path) as arrays:
            has_test = _key(arrays, "x_test") is not None
        if has_test:
            test_images, test_labels = self._read("x_test", "y_test")
            if test_images.shape[1:] != images.shape[1:]:
                raise InvalidValueError(
                    f"{self.path}: the images of x_test are {list(test_images.shape[1:])}, those of x_train "
                    f"{list(images.shape[1:])}; they must be of one size."
                )
            images, labels = np.concatenate([images, test_images]), np.concatenate([labels, test_labels])
        self.in_channels, self.num_classes = images.shape[3], int(labels.max()) + 1
        self.class_names = tuple(map(str, range(self.num_classes)))
        self.image_size = self.image_size or images.shape[1]
        return self._resized(images), labels

    def _read(self, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
        with _open(self.path) as arrays:
            key = _key(arrays, labels_name)
            if key is None:
                raise InvalidValueError(f"{self.path} has {images_name} but no {labels_name}.")
            try:
                images, labels = arrays[_key(arrays, images_name)], arrays[key]
            except ValueError as error:  # an array of pickled objects
                raise InvalidValueError(f"{self.path}: {images_name} or {labels_name} holds objects: {error}") from None
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise InvalidValueError(
                f"{self.path}: {images_name} is {images.dtype} {list(images.shape)}; it must be uint8 [N, H, W] or "
                "[N, H, W, C] with H == W."
            )
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise InvalidValueError(
                f"{self.path}: {labels_name} is {labels.dtype} {list(labels.shape)}; it must be integer class ids from "
                f"0, one for each of the {len(images)} images."
            )
        return images, labels.astype(np.int64)

    def _resized(self, images: np.ndarray) -> np.ndarray:
        if images.shape[1] == self.image_size:
            return images
        method = cv2.INTER_AREA if self.image_size < images.shape[1] else cv2.INTER_LINEAR
        size = (self.image_size, self.image_size)
        resized = np.stack([cv2.resize(image, size, interpolation=method) for image in images])
        return resized.reshape(*resized.shape[:3], images.shape[3])

    def _split(self) -> list[np.ndarray]:
        """The file's own test images are the test part; without them it is taken from the training images."""
        given = self._num_given
        if given == len(self.labels) and self._wanted_test_size is None:
            self.test_size = given // 6
        if given == len(self.labels) or self.fold is not None:
            return super()._split()
        test, _ = self._test_and_rest()
        if self.val_size > given - self.num_classes:
            raise InvalidValueError(
                f"val_size is {self.val_size}; it must be at most {given - self.num_classes}: there are {given} "
                f"training images, and training needs one for each of the {self.num_classes} classes."
            )
        val, train = stratified_split(self.labels[:given], [self.val_size], self.split_seed)
        return [test, val, train]

    def _test_and_rest(self) -> list[np.ndarray]:
        given, own = self._num_given, len(self.labels) - self._num_given
        if not own:
            return super()._test_and_rest()
        wanted = self._wanted_test_size
        self.test_size = own if wanted is None else wanted
        if self.test_size > own:
            raise InvalidValueError(f"test_size is {wanted}; {self.path} has {own} test images.")
        test, _ = stratified_split(self.labels[given:], [self.test_size], self.split_seed)
        return [given + test, np.arange(given)]


def _open(path: str) -> Any:
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InvalidValueError(f"There is no file {Path(path).absolute()}; data.path is {path!r}.") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise InvalidValueError(f"{path} cannot be read as .npz: {error}") from None
    if not hasattr(arrays, "files"):
        raise InvalidValueError(f"{path} holds a single array; it must be .npz with x_train and y_train.")
    return arrays


def _key(arrays: Any, name: str) -> str | None:
    return next((key for key in (name, _NAMES[name]) if key in arrays.files), None)
