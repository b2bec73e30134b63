"""Base of the image datamodules: augmentations, views, normalisation. A subclass only reads the images."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor

from lightning_tuning.data.image_view import ImageView
from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.normalize import Normalize
from lightning_tuning.data.pipeline import SeededPipeline
from lightning_tuning.data.transforms import NAMED_TRANSFORMS, VIEWS, named_transforms, view_names
from lightning_tuning.errors import InvalidValueError, check_choice, check_count


class ImageDataModule(KeyedDataModule, ABC):
    """Batches of :class:`KeyedDataModule` whose ``x`` are images: float32 ``[N, C, H, W]``, normalised with the
    training images' mean and standard deviation, and ``y`` int64 ``[N]``.

    To a Trainer at work, images travel as uint8 and are normalised on the device, in ``on_after_batch_transfer``. Read
    by hand, the loaders give them normalised.

    Args:
        image_size: Height and width in pixels to which the images are resized, at least 4.
        augment: Augmentation of the labelled images: 'none', 'weak' or 'strong'.
        weak_transforms: Albumentations transforms in place of the 'weak' ones. They get and return uint8 images
            `[H, W, C]` of `image_size`; normalisation comes after them.
        strong_transforms: The same for the 'strong' ones.
        unlabeled_views: Views of each unlabelled image, with spaces between: 'weak', 'strong', and further ones with
            their own random numbers, 'weak_2', 'strong_2', ... up to 'weak_8', 'strong_8'.
        **kwargs: See :class:`KeyedDataModule`.

    Attributes:
        in_channels: Number of the images' channels.
        images: After ``setup``, all images: ``images[index]`` is uint8 ``[H, W, C]``.
        pipelines: After ``setup``, the augmentations by name: 'none', 'weak', 'strong' and the further views.

    Raises:
        InvalidValueError: An argument is outside its range, or the transforms do not fit the images.
    """

    not_saved = ("weak_transforms", "strong_transforms")
    in_channels: int

    def __init__(
        self,
        image_size: int = 32,
        augment: str = "weak",
        weak_transforms: list[A.BasicTransform | A.BaseCompose] | None = None,
        strong_transforms: list[A.BasicTransform | A.BaseCompose] | None = None,
        unlabeled_views: str = "weak strong",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_count("image_size", image_size, 4)
        check_choice("augment", augment, NAMED_TRANSFORMS)
        self._views = view_names(unlabeled_views)
        self.image_size = image_size
        self.augment = augment
        self.unlabeled_views = unlabeled_views
        self._transforms = {"weak": weak_transforms, "strong": strong_transforms}

    @property
    def images(self) -> Sequence[np.ndarray] | np.ndarray:
        return self.samples

    def prepare_views(self) -> None:
        self.normalize = Normalize.fit(self.images[index] for index in self.train_indices.tolist())
        wanted = {*NAMED_TRANSFORMS, *self._views}
        self.pipelines = {
            name: self._pipeline(name, salt) for salt, name in enumerate(("none", *VIEWS)) if name in wanted
        }

    def labeled_view(self) -> ImageView:
        return self._view(self.augment)

    def unlabeled_view_of(self) -> Mapping[str, ImageView]:
        return {name: self._view(name) for name in self._views}

    def eval_view(self) -> ImageView:
        return self._view("none")

    def _view(self, name: str) -> ImageView:
        running = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        return ImageView(self.pipelines[name], None if running else self.normalize)

    def _pipeline(self, name: str, salt: int) -> SeededPipeline:
        kind = name.split("_")[0]
        custom = self._transforms.get(kind)
        pipeline = SeededPipeline(named_transforms(kind, self.image_size) if custom is None else custom, salt)
        image = self.images[self.train_indices[0]]
        view = pipeline(image, seed=0)
        if view.shape != image.shape or view.dtype != np.uint8:
            raise InvalidValueError(
                f"{kind}_transforms turn uint8 images of {list(image.shape)} into {view.dtype} of {list(view.shape)}; "
                f"they must keep type and size: leave out Normalize and ToTensorV2, crop to {self.image_size}."
            )
        return pipeline

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images of the batch, which travel as uint8."""
        return apply_to_collection(batch, Tensor, self._normalized)

    def _normalized(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or x.ndim != 4:
            return x
        x = self.normalize.batch(x)
        # The Trainer's own conversion, as for precision "64-true", came before the transfer.
        return x if self.trainer is None else self.trainer.precision_plugin.convert_input(x)
