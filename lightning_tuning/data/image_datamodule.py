"""Base of the image classification datamodules: splits, label selection, loaders. A subclass only loads the images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import albumentations as A
import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_tuning.data.label_selection import choose_labeled
from lightning_tuning.data.loader import KeyedLoader, quiet_opencv
from lightning_tuning.data.normalize import Normalize
from lightning_tuning.data.pipeline import SeededPipeline
from lightning_tuning.data.sampler import EvalSampler, FixedSampler, KeyedSampler, Stream
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.data.transforms import NAMED_TRANSFORMS, VIEWS, named_transforms, view_names
from lightning_tuning.data.views import EvalViews, TrainViews
from lightning_tuning.errors import InvalidValueError, check_choice, check_count

_LARGEST_SEED = 2**32 - 1


class ImageDataModule(LightningDataModule, ABC):
    """Labelled and, if wanted, unlabelled training batches of images, and a validation and a test part.

    A supervised training batch is ``(x, y)`` with ``x`` float32 ``[N, C, H, W]``, normalised with the training images'
    mean and standard deviation, and ``y`` int64 ``[N]``. With ``unlabeled_batch_size`` it is
    ``{"labeled": (x, y), "unlabeled": {"weak": x_weak, "strong": x_strong, "index": ids, "target": y}}``, views of the
    same images, each with augmentations of its own. As in FixMatch (Sohn et al., 2020) the unlabelled images are *all*
    training images, those that keep their label included. Validation, test and prediction (on the test part) give
    ``(x, y)`` without augmentation.

    ``index``, int64 ``[N]``, is each unlabelled image's id, for techniques that remember something of every image: its
    position in ``unlabeled_indices``, from 0 to ``num_unlabeled - 1``. It is the same in every epoch, rank and run with
    the same data, ``split_seed``, ``val_size`` and ``test_size``. ``target``, int64 ``[N]``, is the hidden label. It is
    there to measure how many pseudo labels are right; no technique learns from it.

    Order and augmentations are functions of seed, epoch and position. They do not depend on the number of workers, and
    a resumed run continues exactly as the uninterrupted one would.

    Args:
        num_labels: How many training images keep their label, as many of each class as possible; from the number of
            classes to the number of training images. None: all of them.
        batch_size: Labelled images for each step and rank, at least 1. All batches are full.
        unlabeled_batch_size: Unlabelled images for each step and rank; 0: supervised batches.
        image_size: Height and width in pixels to which the images are resized, at least 4.
        augment: Augmentation of the labelled images: 'none', 'weak' or 'strong'.
        steps_per_epoch: Training steps in an epoch, at least 1. None: as many as one pass takes, over the unlabelled
            images if there are any, else over the labelled ones.
        val_size: Number of validation images, at least 0; 0: no validation.
        test_size: Number of test images, at least 0.
        seed: Decides which labels are kept, the order and the augmentations, 0 to 2**32 - 1. None: the seed given to
            `seed_everything`, or 0.
        split_seed: Decides which images are for training, validation and test, 0 to 2**32 - 1. Apart from `seed`, so
            that runs with different seeds are measured on the same images.
        num_workers: Processes that prepare the batches; 0: the main process.
        eval_batch_size: Images for each step and rank in validation, test and prediction, at least 1.
        weak_transforms: Albumentations transforms in place of the 'weak' ones. They get and return uint8 images
            `[H, W, C]` of `image_size`; normalisation comes after them.
        strong_transforms: The same for the 'strong' ones.
        unlabeled_views: Views of each unlabelled image, with spaces between: 'weak', 'strong', and further ones with
            their own random numbers, 'weak_2', 'strong_2', ... up to 'weak_8', 'strong_8'.

    Attributes:
        num_classes: Number of classes.
        in_channels: Number of the images' channels.
        class_names: Name of each class.
        images: After ``setup``, all images, uint8 ``[N, H, W, C]``.
        labels: After ``setup``, all labels, ``[N]``.
        train_indices: After ``setup``, the training part; ``val_indices`` and ``test_indices`` likewise.
        labeled_indices: After ``setup``, the training images that keep their label.
        unlabeled_indices: After ``setup``, the training images whose label is not used: all of the training part,
            increasing.
        pipelines: After ``setup``, the augmentations by name: 'none', 'weak', 'strong' and the further views.

    Raises:
        InvalidValueError: An argument is outside its range, or the sizes do not fit the data.
    """

    num_classes: int
    in_channels: int
    class_names: tuple[str, ...]

    def __init__(
        self,
        num_labels: int | None = None,
        batch_size: int = 32,
        unlabeled_batch_size: int = 0,
        image_size: int = 32,
        augment: str = "weak",
        steps_per_epoch: int | None = None,
        val_size: int = 1000,
        test_size: int = 1000,
        seed: int | None = None,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        weak_transforms: list[A.BasicTransform | A.BaseCompose] | None = None,
        strong_transforms: list[A.BasicTransform | A.BaseCompose] | None = None,
        unlabeled_views: str = "weak strong",
    ) -> None:
        super().__init__()
        check_count("num_labels", num_labels, 1, optional=True)
        check_count("batch_size", batch_size, 1)
        check_count("unlabeled_batch_size", unlabeled_batch_size, 0)
        check_count("image_size", image_size, 4)
        check_choice("augment", augment, NAMED_TRANSFORMS)
        check_count("steps_per_epoch", steps_per_epoch, 1, optional=True)
        check_count("val_size", val_size, 0)
        check_count("test_size", test_size, 0)
        check_count("seed", seed, 0, _LARGEST_SEED, optional=True)
        check_count("split_seed", split_seed, 0, _LARGEST_SEED)
        check_count("num_workers", num_workers, 0)
        check_count("eval_batch_size", eval_batch_size, 1)
        self._views = view_names(unlabeled_views)
        # Not logged: a LightningModule with an argument of the same name and another value would stop the run.
        self.save_hyperparameters(ignore=["weak_transforms", "strong_transforms"], logger=False)
        self.num_labels = num_labels
        self.batch_size = batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.image_size = image_size
        self.augment = augment
        self.steps_per_epoch = steps_per_epoch
        self.val_size = val_size
        self.test_size = test_size
        self.seed = seed
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.eval_batch_size = eval_batch_size
        self.unlabeled_views = unlabeled_views
        self._transforms = {"weak": weak_transforms, "strong": strong_transforms}

    @abstractmethod
    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 ``[N, image_size, image_size, C]``, and their class ids, int64 ``[N]``."""

    def setup(self, stage: str | None = None) -> None:
        """Load the images, split them, choose the labels."""
        self.images, self.labels = self.load()
        self.test_indices, self.val_indices, self.train_indices = self._split()
        chosen = choose_labeled(self.labels[self.train_indices], self.num_labels, self.effective_seed)
        self.labeled_indices = self.train_indices[chosen]
        self.unlabeled_indices = self.train_indices
        self.normalize = Normalize.fit(self.images[self.train_indices])
        wanted = {*NAMED_TRANSFORMS, *self._views}
        self.pipelines = {
            name: self._pipeline(name, salt) for salt, name in enumerate(("none", *VIEWS)) if name in wanted
        }

    @property
    def num_unlabeled(self) -> int:
        """After ``setup``, how many ids unlabelled images have: ``index`` is from 0 to ``num_unlabeled - 1``."""
        return len(self.unlabeled_indices)

    @property
    def effective_seed(self) -> int:
        """``seed``, or the one given to ``seed_everything``, or 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def state_dict(self) -> dict[str, int]:
        """What decides which labels are kept."""
        return {"seed": self.effective_seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Refuse to go on with other labels than the checkpoint's run had."""
        trainer = self.trainer
        seed = state_dict["seed"]
        if seed != self.effective_seed and trainer is not None and trainer.state.fn == "fit":
            raise InvalidValueError(
                f"The checkpoint's run used seed {seed} for its labels and order, this one {self.effective_seed}. "
                f"Write --seed_everything={seed} or --data.seed={seed}."
            )

    def _split(self) -> list[np.ndarray]:
        """The images of the test, the validation and the training part."""
        self._check_sizes(len(self.labels))
        return stratified_split(self.labels, [self.test_size, self.val_size], self.split_seed)

    def _check_sizes(self, num_images: int) -> None:
        most = num_images - self.num_classes
        if self.val_size + self.test_size > most:
            raise InvalidValueError(
                f"val_size is {self.val_size} and test_size is {self.test_size}; together they must be at most {most}: "
                f"there are {num_images} images, and training needs one for each of the {self.num_classes} classes."
            )

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

    def train_dataloader(self) -> KeyedLoader:
        """This rank's training batches."""
        world, rank = self._world_and_rank
        streams = [Stream("labeled", self.labeled_indices, self.batch_size)]
        if self.unlabeled_batch_size:
            streams.append(Stream("unlabeled", self.unlabeled_indices, self.unlabeled_batch_size))
        one_pass = -(-len(streams[-1].indices) // (streams[-1].batch_size * world))
        sampler_class = FixedSampler if getattr(self.trainer, "overfit_batches", 0) else KeyedSampler
        sampler = sampler_class(
            streams, self.steps_per_epoch or one_pass, seed=self.effective_seed, num_replicas=world, rank=rank
        )
        unlabeled = {name: self.pipelines[name] for name in self._views}
        labeled, pool = self.pipelines[self.augment], self.unlabeled_indices
        views = TrainViews(self.images, self.labels, self.normalize, labeled, unlabeled, pool)
        return KeyedLoader(views, sampler, num_workers=self.num_workers, pin_memory=self._on_cuda())

    def plain_train_dataloader(self) -> DataLoader | list:
        """Batches of the labelled training images without augmentation, in fixed order, for batch norm's statistics."""
        return self._eval_dataloader(self.labeled_indices)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of the validation part."""
        return self._eval_dataloader(self.val_indices)

    def test_dataloader(self) -> DataLoader | list:
        """Batches of the test part."""
        return self._eval_dataloader(self.test_indices)

    def predict_dataloader(self) -> DataLoader | list:
        """Batches of the test part."""
        return self._eval_dataloader(self.test_indices)

    def _eval_dataloader(self, indices: np.ndarray) -> DataLoader | list:
        if not len(indices):
            return []
        world, rank = self._world_and_rank
        return DataLoader(
            EvalViews(self.images, self.labels, indices, self.normalize),
            sampler=EvalSampler(len(indices), self.eval_batch_size, world, rank),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=quiet_opencv,
            pin_memory=self._on_cuda(),
        )

    @property
    def _world_and_rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
