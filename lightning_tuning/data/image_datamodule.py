"""Base of the image datamodules: augmentations, views, normalisation. A subclass only reads the images."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_tuning.data.batch_view import BatchView, Keyed
from lightning_tuning.data.batches import View
from lightning_tuning.data.device_augment import DeviceAugment, named_device_augment
from lightning_tuning.data.image_view import ImageView, MaskedImageView
from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.normalize import Normalize, check_statistics
from lightning_tuning.data.pipeline import SeededPipeline, Transform
from lightning_tuning.data.progressive import ImageSizeSchedule
from lightning_tuning.data.transform_checks import check_transforms
from lightning_tuning.data.transforms import VIEWS, named_transforms, view_names
from lightning_tuning.errors import InvalidValueError, check_count
from lightning_tuning.timing.progress import steps_in_epochs


class ImageDataModule(KeyedDataModule, ABC):
    """Batches of :class:`KeyedDataModule` whose ``x`` are images: float32 ``[N, C, H, W]``, normalised with the
    training images' mean and standard deviation, and ``y`` is int64 ``[N]``, float32 ``[N, K]`` of 0 and 1, float32
    ``[N, D]``, or the pixels' class ids, int64 ``[N, H, W]``, by ``task``.

    To a Trainer at work, images travel as uint8 and are normalised on the device, in ``on_after_batch_transfer``. Read
    by hand, the loaders give them normalised. A LightningModule's own hook of that name is called behind it.

    Args:
        image_size: Height and width in pixels to which the images are resized, at least 4.
        augment: Augmentation of the labelled images: 'none', 'weak', 'strong', or one of 'randaugment(n=2, m=9)',
            'trivialaugment', 'augmix' and 'resized_crop(area=0.08)', with settings in brackets, or several with plus
            signs between: 'weak + randaugment'. 'batch(flip=0.5, crop=4, erase=0.25)' augments whole batches on the
            device: it mirrors and erases with these probabilities, and shifts by up to so many pixels.
        flip: Whether a mirrored image shows the same, as it does in photographs, but not in digits or writing. If so,
            half of the images are mirrored by every augmentation but 'none' and lists of your own.
        weak_transforms: A name as for `augment`, or a list of Albumentations transforms, in place of the 'weak' ones.
            They get and return uint8 images `[H, W, C]` of `image_size`; normalisation comes after them.
        strong_transforms: The same for the 'strong' ones.
        unlabeled_views: Views of each unlabelled image, with spaces between: 'weak', 'strong', and further ones with
            their own random numbers, 'weak_2', 'strong_2', ... up to 'weak_8', 'strong_8'.
        progressive: Image sizes of training that grow in the course of the run, such as '128 -> 224 over 60%', by a
            step of 32 unless it says another, as '16 -> 32 over 60% by 8'. The last is `image_size`. Batches are
            resized on the device, and each epoch has one size. None: all images are `image_size`.
        mean: Mean of each channel, of values in [0, 1], that images are normalised with. None: that of the training
            part.
        std: Standard deviation of each channel, above 0, with `mean`.
        **kwargs: See :class:`KeyedDataModule`.

    Attributes:
        in_channels: Number of the images' channels.
        images: After ``setup``, all images: ``images[index]`` is uint8 ``[H, W, C]``.
        pipelines: After ``setup``, the augmentations by name: 'none', 'weak', 'strong', the further views, ``augment``.
        device_augments: After ``setup``, those that the device does after them, by name.

    Raises:
        InvalidValueError: An argument is outside its range, or the transforms do not fit the images.
    """

    not_saved = ("weak_transforms", "strong_transforms")
    in_channels: int
    ignore_index: int = 255
    """Class id of pixels without a class."""

    def __init__(
        self,
        image_size: int = 32,
        augment: str = "weak",
        flip: bool = False,
        weak_transforms: str | list[A.BasicTransform | A.BaseCompose] | None = None,
        strong_transforms: str | list[A.BasicTransform | A.BaseCompose] | None = None,
        unlabeled_views: str = "weak strong",
        progressive: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_statistics(mean, std)
        check_count("image_size", image_size, 4)
        self._sizes = None if progressive is None else ImageSizeSchedule(progressive, "progressive")
        given = {"augment": augment, "weak_transforms": weak_transforms, "strong_transforms": strong_transforms}
        _check_kinds(given)
        for argument, name in given.items():
            if isinstance(name, str) and named_device_augment(name, flip, argument) is None:
                named_transforms(name, image_size, argument=argument)
        self._views = view_names(unlabeled_views)
        self.image_size = image_size
        self.augment = augment
        self.flip = flip
        self.unlabeled_views = unlabeled_views
        self.progressive = progressive
        self.mean = mean
        self.std = std
        self._transforms: dict[str, Any] = {
            "none": "none",
            "weak": "weak" if weak_transforms is None else weak_transforms,
            "strong": "strong" if strong_transforms is None else strong_transforms,
        }

    @property
    def images(self) -> Sequence[np.ndarray] | np.ndarray:
        return self.samples

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None and stage == "fit":
            self._tell_of_unused()
        super().setup(stage)
        if self._sizes is not None and self._sizes.sizes[-1] != self.image_size:
            raise InvalidValueError(
                f"progressive is {self.progressive!r}, but image_size is {self.image_size}; it must end with that size."
            )

    def _tell_of_unused(self) -> None:
        """Tell of transforms that no batch will show."""
        used = {self.augment, *(name.split("_")[0] for name in self._views if self.unlabeled_batch_size)}
        for name in ("weak", "strong"):
            if name not in used and self._transforms[name] != name:
                rank_zero_warn(
                    f"{name}_transforms is given, but nothing uses it: augment is {self.augment!r}, and there is no "
                    f"unlabelled view {name!r}. Write augment={name!r} for the labelled images."
                )

    def prepare_views(self) -> None:
        self._prepare_pipelines()
        self.normalize = self.fit_normalize()

    def fit_normalize(self) -> Normalize:
        """What gives the training images mean 0 and standard deviation 1, or what ``mean`` and ``std`` say."""
        if self.mean is not None and self.std is not None:
            check_statistics(self.mean, self.std, self.in_channels)
            return Normalize(self.mean, self.std)
        return Normalize.fit(self.images[index] for index in self.train_indices.tolist())

    def _prepare_pipelines(self) -> None:
        names, wanted = ("none", *VIEWS), {*self._transforms, *self._views}
        self.pipelines: dict[str, SeededPipeline] = {}
        self.device_augments: dict[str, DeviceAugment] = {}
        for salt, name in enumerate(names):
            if name in wanted:
                kind = name.split("_")[0]
                self._prepare(name, f"{kind}_transforms", self._transforms[kind], salt)
        if self.augment not in self._transforms:
            self._prepare(self.augment, "augment", self.augment, len(names))

    def _prepare(self, name: str, argument: str, given: str | list[Transform], salt: int) -> None:
        augment = named_device_augment(given, self.flip, argument)
        self.pipelines[name] = self._pipeline(argument, given if augment is None else "none", salt)
        if augment is not None:
            self.device_augments[name] = augment

    def labeled_view(self) -> View:
        return self.view(self.augment)

    def unlabeled_view_of(self) -> Mapping[str, View]:
        return {name: self.view(name) for name in self._views}

    def eval_view(self) -> View:
        return self.view("none")

    def view(self, name: str) -> ImageView | BatchView:
        """The view of a name of ``pipelines``."""
        kind, pipeline = MaskedImageView if self.task == "segmentation" else ImageView, self.pipelines[name]
        running = self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING
        view = kind(pipeline, None if running else self.normalize)
        augment = self.device_augments.get(name)
        return view if augment is None else BatchView(name, view, augment, pipeline.salt, self.ignore_index)

    def _pipeline(self, argument: str, given: str | list[Transform], salt: int) -> SeededPipeline:
        masks = self.task == "segmentation"
        if isinstance(given, str):
            fill = self.ignore_index if masks else 0
            named = named_transforms(given, self.image_size, self.in_channels, self.flip, fill, argument)
            pipeline = SeededPipeline([*self.to_size(given), *named], salt)
            if masks:  # which some refuse
                blank = np.zeros((self.image_size, self.image_size, self.in_channels), np.uint8)
                pipeline(blank, 0, blank[..., 0])
            return pipeline
        for size in self.source_sizes():
            check_transforms(given, self.in_channels, self.image_size, size, masks, argument)
        return SeededPipeline(given, salt)

    def to_size(self, name: str) -> list[Transform]:
        """What brings images as they are read to ``image_size`` before the named transforms."""
        return []

    def source_sizes(self) -> list[tuple[int, int] | None]:
        """Heights and widths that images may have as they are read. None: ``image_size``."""
        return [None]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment what is augmented here, normalise the images, which travel as uint8, and give them their size."""
        if self.device_augments:
            batch = apply_to_collection(batch, Keyed, self._augmented)
        batch = apply_to_collection(batch, Tensor, self._arrived, self._size_now())
        module = None if self.trainer is None else self.trainer.lightning_module
        if module is not None and is_overridden("on_after_batch_transfer", module):
            batch = module.on_after_batch_transfer(batch, dataloader_idx)  # which Lightning calls without ours alone
        return batch

    def _augmented(self, batch: Keyed) -> Tensor | tuple[Tensor, Tensor]:
        view = self.view(batch.view)
        assert isinstance(view, BatchView)  # only such a view hands over its seeds
        return view.augmented(batch)

    def _size_now(self) -> int:
        """The size of the epoch under way in training, else ``image_size``."""
        trainer = self.trainer
        if self._sizes is None or trainer is None or not trainer.training:
            return self.image_size
        done = steps_in_epochs(trainer, trainer.current_epoch)
        return self._sizes.size(done / self._sizes.length.steps(trainer))

    def _arrived(self, x: Tensor, size: int) -> Tensor:
        """An image batch as the model gets it; masks are resized alike, other tensors stay."""
        if self.task == "segmentation" and x.ndim == 3 and size != self.image_size:
            return F.interpolate(x[:, None].float(), size, mode="nearest-exact")[:, 0].to(x.dtype)
        if x.dtype != torch.uint8 or x.ndim != 4:
            return x
        x = self.normalize.batch(x)
        if size != self.image_size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        # The Trainer's own conversion, as for precision "64-true", came before the transfer.
        return x if self.trainer is None else self.trainer.precision_plugin.convert_input(x)


def _check_kinds(given: Mapping[str, Any]) -> None:
    """Whether ``augment`` is a name, and the others are names or lists."""
    if not isinstance(given["augment"], str):
        raise InvalidValueError(
            f"augment is {given['augment']!r}; it must be a name, such as 'none' or 'weak'. Write a list of transforms "
            "as weak_transforms, which augment='weak' uses."
        )
    for argument, value in given.items():
        if value is not None and not isinstance(value, (str, Sequence, A.BaseCompose)):
            raise InvalidValueError(f"{argument} is {value!r}; it must be a name or a list of transforms: write [...].")
