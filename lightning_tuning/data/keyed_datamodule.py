"""Base of all datamodules here: splits, label selection, streams, loaders. A subclass reads samples and makes views."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tuning.data.batches import EvalBatches, TrainBatches, View
from lightning_tuning.data.folds import fold_of, parse_fold
from lightning_tuning.data.label_selection import choose_labeled
from lightning_tuning.data.loader import KeyedLoader, quiet_opencv
from lightning_tuning.data.sampler import EvalSampler, FixedSampler, KeyedSampler, Stream
from lightning_tuning.data.splits import stratified_split
from lightning_tuning.data.weighted_order import balanced_weights
from lightning_tuning.errors import InvalidValueError, check_count, check_range

LARGEST_SEED = 2**32 - 1


class KeyedDataModule(LightningDataModule, ABC):
    """Labelled and, if wanted, unlabelled training batches, and a validation and a test part.

    A supervised training batch is ``(x, y)``. With ``unlabeled_batch_size`` it is ``{"labeled": (x, y), "unlabeled":
    {"weak": x_weak, "strong": x_strong, "index": ids, "target": y}}``, views of the same samples, each with
    augmentations of its own. As in FixMatch (Sohn et al., 2020) the unlabelled samples are *all* training samples,
    those that keep their label included. Validation, test and prediction (on the test part) give ``(x, y)`` without
    augmentation.

    ``index``, int64 ``[N]``, is each unlabelled sample's id, for techniques that remember something of every sample:
    its position in ``unlabeled_indices``, from 0 to ``num_unlabeled - 1``. It is the same in every epoch, rank and run
    with the same data, ``split_seed``, ``val_size`` and ``test_size``. ``target`` is the hidden label. It is there to
    measure how many pseudo labels are right; no technique learns from it.

    Order and augmentations are functions of seed, epoch and position. They do not depend on the number of workers, and
    a resumed run continues exactly as the uninterrupted one would.

    Args:
        num_labels: How many training samples keep their label, as many of each class as possible; from the number of
            classes to the number of training samples. None: all of them.
        batch_size: Labelled samples for each step and rank, at least 1. All batches are full.
        unlabeled_batch_size: Unlabelled samples for each step and rank; 0: supervised batches.
        steps_per_epoch: Training steps in an epoch, at least 1. None: as many as one pass takes, over the unlabelled
            samples if there are any, else over the labelled ones.
        val_size: Number of validation samples, at least 0; 0: no validation.
        test_size: Number of test samples, at least 0.
        seed: Decides which labels are kept, the order and the augmentations, 0 to 2**32 - 1. None: the seed given to
            `seed_everything`, or 0.
        split_seed: Decides which samples are for training, validation and test, 0 to 2**32 - 1. Apart from `seed`, so
            that runs with different seeds are measured on the same samples.
        num_workers: Processes that prepare the batches; 0: the main process.
        eval_batch_size: Samples for each step and rank in validation, test and prediction, at least 1.
        fold: Cross-validation: which fold is the validation part, in place of `val_size`. '2/5' is the second of five.
            The test part is the same in every fold, and over the folds every other sample is held out once.
        balance: How far the classes of the labelled samples are evened out, in [0, 1]. 0: each sample comes once in a
            pass; 1: all classes come equally often; 0.5: by the root of their size. Off: 0.

    Attributes:
        task: What the targets are: ``multiclass``, ``multilabel`` or ``regression``.
        num_classes: Number of classes, labels or values of a target.
        class_names: Name of each class, label or value.
        samples: After ``setup``, what ``load`` gave: ``samples[index]`` reads one.
        labels: After ``setup``, all targets: class ids ``[N]``, multi-hot labels ``[N, K]`` or values ``[N, D]``.
        groups: After ``setup``, what each sample belongs to, ``[N]``; no group is in two parts. None: it is its own.
        train_indices: After ``setup``, the training part; ``val_indices`` and ``test_indices`` likewise.
        labeled_indices: After ``setup``, the training samples that keep their label.
        unlabeled_indices: After ``setup``, the training samples whose label is not used: all of the training part,
            increasing.

    Raises:
        InvalidValueError: An argument is outside its range, or the sizes do not fit the data.
    """

    not_saved: ClassVar[tuple[str, ...]] = ()
    """Arguments that a checkpoint cannot hold, as they are objects."""
    task: str = "multiclass"
    num_classes: int
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None

    def __init__(
        self,
        num_labels: int | None = None,
        batch_size: int = 32,
        unlabeled_batch_size: int = 0,
        steps_per_epoch: int | None = None,
        val_size: int = 1000,
        test_size: int = 1000,
        seed: int | None = None,
        split_seed: int = 0,
        num_workers: int = 0,
        eval_batch_size: int = 256,
        fold: str | None = None,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("num_labels", num_labels, 1, optional=True)
        check_count("batch_size", batch_size, 1)
        check_count("unlabeled_batch_size", unlabeled_batch_size, 0)
        check_count("steps_per_epoch", steps_per_epoch, 1, optional=True)
        check_count("val_size", val_size, 0)
        check_count("test_size", test_size, 0)
        check_count("seed", seed, 0, LARGEST_SEED, optional=True)
        check_count("split_seed", split_seed, 0, LARGEST_SEED)
        check_count("num_workers", num_workers, 0)
        check_count("eval_batch_size", eval_batch_size, 1)
        if fold is not None:
            parse_fold(fold)
        check_range("balance", balance, 0.0, 1.0)
        # Not logged: a LightningModule with an argument of the same name and another value would stop the run.
        self.save_hyperparameters(ignore=[*self.not_saved], logger=False)
        self.num_labels = num_labels
        self.batch_size = batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.val_size = val_size
        self.test_size = test_size
        self.seed = seed
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.eval_batch_size = eval_batch_size
        self.fold = fold
        self.balance = balance

    @abstractmethod
    def load(self) -> tuple[Sequence[Any] | np.ndarray, np.ndarray]:
        """All samples, each read by its index, and their targets: int64 ``[N]``, float32 ``[N, K]`` or ``[N, D]``."""

    @abstractmethod
    def prepare_views(self) -> None:
        """Fit to the training part what the views need. Called by ``setup`` when the parts are known."""

    @abstractmethod
    def labeled_view(self) -> View:
        """The view of labelled samples in training."""

    @abstractmethod
    def unlabeled_view_of(self) -> Mapping[str, View]:
        """The views of unlabelled samples, by name."""

    @abstractmethod
    def eval_view(self) -> View:
        """The view of samples in evaluation."""

    def setup(self, stage: str | None = None) -> None:
        """Load the samples, split them, choose the labels."""
        self.samples, self.labels = self.load()
        self.test_indices, self.val_indices, self.train_indices = self._split()
        chosen = choose_labeled(self.labels[self.train_indices], self.num_labels, self.effective_seed)
        self.labeled_indices = self.train_indices[chosen]
        self.unlabeled_indices = self.train_indices
        self.prepare_views()

    @property
    def targets(self) -> Tensor:
        """After ``setup``, the target of every sample: int64 ``[N]``, or float32 ``[N, K]`` or ``[N, D]``."""
        return torch.as_tensor(self.labels, dtype=torch.int64 if self.task == "multiclass" else torch.float32)

    @property
    def num_unlabeled(self) -> int:
        """After ``setup``, how many ids unlabelled samples have: ``index`` is from 0 to ``num_unlabeled - 1``."""
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
        """The samples of the test, the validation and the training part."""
        if self.fold is not None:
            return self._with_fold(*self._test_and_rest())
        self._check_room(self.val_size + self.test_size, f"val_size is {self.val_size} and test_size")
        return stratified_split(self.labels, [self.test_size, self.val_size], self.split_seed, groups=self.groups)

    def _check_room(self, wanted: int, what: str) -> None:
        """Whether training keeps a sample of each class when ``wanted`` samples are held out."""
        least = self.num_classes if self.task == "multiclass" else 1
        most = len(self.labels) - least
        if wanted > most:
            together = "; together they" if " and " in what else "; it"
            raise InvalidValueError(
                f"{what} is {self.test_size}{together} must be at most {most}: there are {len(self.labels)} samples, "
                f"and training needs {f'one for each of the {least} classes' if least > 1 else 'at least one'}."
            )

    def _test_and_rest(self) -> list[np.ndarray]:
        """The samples of the test part, and all others."""
        self._check_room(self.test_size, "test_size")
        return stratified_split(self.labels, [self.test_size], self.split_seed, groups=self.groups)

    def _with_fold(self, test: np.ndarray, rest: np.ndarray) -> list[np.ndarray]:
        """The test part, and the rest as the fold divides it."""
        groups = None if self.groups is None else self.groups[rest]
        train, held_out = fold_of(self.labels[rest], self.fold or "", self.split_seed, groups)
        return [test, rest[held_out], rest[train]]

    def train_dataloader(self) -> KeyedLoader:
        """This rank's training batches."""
        streams = [self._labeled_stream()]
        if self.unlabeled_batch_size:
            streams.append(Stream("unlabeled", self.unlabeled_indices, self.unlabeled_batch_size))
        batches = TrainBatches(
            self.samples, self.targets, self.labeled_view(), self.unlabeled_view_of(), self.unlabeled_indices
        )
        return self._keyed_loader(batches, streams)

    def _labeled_stream(self) -> Stream:
        labels = self.labels[self.labeled_indices]
        if self.balance and self.task != "multiclass":
            raise InvalidValueError(f"balance is {self.balance!r}, but the targets are no classes. Write balance=0.")
        weights = balanced_weights(labels, self.balance) if self.balance else None
        return Stream("labeled", self.labeled_indices, self.batch_size, weights, labels)

    def _keyed_loader(self, batches: Any, streams: Sequence[Stream]) -> KeyedLoader:
        """A loader of the streams, as long as one pass over the last of them unless ``steps_per_epoch`` is given."""
        world, rank = self._world_and_rank
        one_pass = -(-len(streams[-1].indices) // (streams[-1].batch_size * world))
        sampler_class = FixedSampler if getattr(self.trainer, "overfit_batches", 0) else KeyedSampler
        sampler = sampler_class(
            streams, self.steps_per_epoch or one_pass, seed=self.effective_seed, num_replicas=world, rank=rank
        )
        return KeyedLoader(batches, sampler, num_workers=self.num_workers, pin_memory=self._on_cuda())

    def plain_train_dataloader(self) -> DataLoader | list:
        """Batches of the labelled training samples, not augmented, in fixed order, for batch norm's statistics."""
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
            EvalBatches(self.samples, self.targets, indices, self.eval_view()),
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
