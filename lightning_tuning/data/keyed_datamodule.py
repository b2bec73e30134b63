"""Base of all datamodules here: splits, label selection, streams, loaders. A subclass reads samples and makes views."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tuning.data.bad_samples import BadSamples
from lightning_tuning.data.batches import EvalBatches, Reader, TrainBatches, View
from lightning_tuning.data.folds import parse_fold
from lightning_tuning.data.label_selection import choose_labeled
from lightning_tuning.data.loader import KeyedLoader, no_batches, quiet_opencv
from lightning_tuning.data.parts import Parts, as_size, make_parts
from lightning_tuning.data.plain_datamodule import PlainDataModule
from lightning_tuning.data.sampler import EvalSampler, FixedSampler, KeyedSampler, Stream
from lightning_tuning.data.split_manifest import Split, load_split
from lightning_tuning.data.split_record import check_split, check_usable, digests, record_split
from lightning_tuning.data.weighted_order import balanced_weights
from lightning_tuning.data.workers import worker_count
from lightning_tuning.data_ranks import data_ranks
from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range

LARGEST_SEED = 2**32 - 1


class KeyedDataModule(PlainDataModule, ABC):
    """Labelled and, if wanted, unlabelled training batches, and a validation and a test part.

    A supervised training batch is ``(x, y)``. With ``unlabeled_batch_size`` it is ``{"labeled": (x, y), "unlabeled":
    {"weak": x_weak, "strong": x_strong, "index": ids, "target": y}}``, views of the same samples, each with
    augmentations of its own. As in FixMatch (Sohn et al., 2020) the unlabelled samples are *all* training samples,
    those that keep their label included. Validation, test and prediction (on the test part) give ``(x, y)`` without
    augmentation.

    ``index``, int64 ``[N]``, is each unlabelled sample's id, for techniques that remember something of every sample:
    its position in ``unlabeled_indices``, from 0 to ``num_unlabeled - 1``. It is the same in every epoch, rank and run
    with the same data, ``split_seed``, ``val_size`` and ``test_size``. ``target`` is the hidden label, or -1 where the
    data have none. It is there to measure how many pseudo labels are right; no technique learns from it.

    Order and augmentations are functions of seed, epoch and position. They do not depend on the number of workers, and
    a resumed run continues exactly as the uninterrupted one would. Each run's parts stand in ``split.csv`` beside its
    journal, and a checkpoint is not resumed on others.

    Args:
        num_labels: How many training samples keep their label, as many of each class as possible; from the number of
            classes to the number of training samples. None: all of them.
        batch_size: Labelled samples for each step and rank, at least 1. All batches are full.
        unlabeled_batch_size: Unlabelled samples for each step and rank; 0: supervised batches.
        steps_per_epoch: Training steps in an epoch, at least 1, or as many as one pass over the samples of a stream
            takes, 'labeled' or 'unlabeled'. None: 'unlabeled' if there is this stream, else 'labeled'.
        val_size: Number of validation samples, at least 0, or their share of the samples that they are taken from, in
            (0, 1). 0: no validation. None: all that the data give as validation, or else a tenth.
        test_size: The same of test samples.
        seed: Decides which labels are kept, the order and the augmentations, 0 to 2**32 - 1. None: the seed given to
            `seed_everything`, or 0.
        split_seed: Decides which samples are for training, validation and test, 0 to 2**32 - 1. Apart from `seed`, so
            that runs with different seeds are measured on the same samples.
        num_workers: Processes that prepare the batches; 0: the main process. None: as many as the machine has cores
            for each rank, but one, at most 8; for data in memory none unless the run is on an accelerator.
        eval_batch_size: Samples for each step and rank in validation, test and prediction, at least 1.
        fold: Cross-validation: which fold is the validation part, in place of `val_size`. '2/5' is the second of five.
            The test part is the same in every fold, and over the folds every other sample is held out once.
        balance: How far the classes of the labelled samples are evened out, in [0, 1]. 0: each sample comes once in a
            pass; 1: all classes come equally often; 0.5: by the root of their size. Off: 0.
        split_file: A CSV file that says each sample's part and whether its label is kept, such as ``split.csv`` of
            another run, in place of `val_size`, `test_size`, `split_seed` and `fold`; `num_labels` chooses anew among
            its training samples. None: the parts are drawn.

    Attributes:
        task: What the targets are: ``multiclass``, ``multilabel``, ``regression`` or ``segmentation``.
        num_classes: Number of classes, labels or values of a target.
        class_names: Name of each class, label or value.
        samples: After ``setup``, what ``load`` gave: ``samples[index]`` reads one.
        keys: After ``setup``, the name of each sample, such as its file, ``[N]``.
        labels: After ``setup``, all targets: class ids ``[N]``, -1 where there is none, multi-hot labels ``[N, K]`` or
            values ``[N, D]``.
        groups: After ``setup``, what each sample belongs to, ``[N]``; no group is in two parts. None: it is its own.
        given_parts: After ``setup``, the part that the data give each sample, ``train``, ``val`` or ``test``, ``[N]``.
            None: they give none.
        weights: After ``setup``, how often each labelled sample is drawn in training, in proportion, ``[N]``. None:
            each once in a pass, or as `balance` says.
        bad_samples: After ``setup``, counts the samples that are skipped. None: the first bad one ends the run.
        train_indices: After ``setup``, the training part; ``val_indices`` and ``test_indices`` likewise.
        labeled_indices: After ``setup``, the training samples that keep their label.
        unlabeled_indices: After ``setup``, the training samples whose label is not used: all of the training part,
            increasing.

    Raises:
        InvalidValueError: An argument is outside its range, or the sizes do not fit the data.
    """

    not_saved: ClassVar[tuple[str, ...]] = ()
    """Arguments that a checkpoint cannot hold, as they are objects."""
    in_memory: ClassVar[bool] = True
    """Whether reading a sample costs next to nothing."""
    task: str = "multiclass"
    num_classes: int
    class_names: tuple[str, ...]
    keys: Sequence[str] = ()
    groups: np.ndarray | None = None
    given_parts: np.ndarray | None = None
    weights: np.ndarray | None = None
    bad_samples: BadSamples | None = None

    def __init__(
        self,
        num_labels: int | None = None,
        batch_size: int = 32,
        unlabeled_batch_size: int = 0,
        steps_per_epoch: int | Literal["labeled", "unlabeled"] | None = None,
        val_size: int | float | None = None,
        test_size: int | float | None = None,
        seed: int | None = None,
        split_seed: int = 0,
        num_workers: int | None = None,
        eval_batch_size: int = 256,
        fold: str | None = None,
        balance: float = 0.0,
        split_file: str | None = None,
    ) -> None:
        super().__init__()
        check_count("num_labels", num_labels, 1, optional=True)
        check_count("batch_size", batch_size, 1)
        check_count("unlabeled_batch_size", unlabeled_batch_size, 0)
        if isinstance(steps_per_epoch, str):
            check_choice("steps_per_epoch", steps_per_epoch, ("labeled", "unlabeled"), "an integer of at least 1")
            if steps_per_epoch == "unlabeled" and not unlabeled_batch_size:
                raise InvalidValueError("steps_per_epoch is 'unlabeled', but unlabeled_batch_size is 0. Give it, too.")
        else:
            check_count("steps_per_epoch", steps_per_epoch, 1, optional=True)
        val_size, test_size = as_size("val_size", val_size), as_size("test_size", test_size)
        check_count("seed", seed, 0, LARGEST_SEED, optional=True)
        check_count("split_seed", split_seed, 0, LARGEST_SEED)
        check_count("num_workers", num_workers, 0, optional=True)
        check_count("eval_batch_size", eval_batch_size, 1)
        if fold is not None:
            parse_fold(fold)
            if split_file is not None:
                raise InvalidValueError(f"fold is {fold!r}, but split_file already says the parts. Leave one out.")
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
        self.split_file = split_file

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
        samples, self.labels = self.load()
        self.samples = self.kept(samples)
        if len(self.keys) != len(self.labels):
            self.keys = [str(index) for index in range(len(self.labels))]
        if self.split_file is None:
            self.test_indices, self.val_indices, self.train_indices = self.make_parts()
            self.labeled_indices = self._with_label()
        else:
            split = load_split(self.split_file, self.keys)
            check_usable(self.split_file, self.keys, split, self.known, self.groups, bool(self.num_labels))
            self.train_indices, self.val_indices, self.test_indices, kept = split
            self.labeled_indices = self._with_label() if self.num_labels else kept[self.known[kept]]
        self.unlabeled_indices = self.train_indices
        self._digests = digests(self.keys, self._parts)
        if self.trainer is not None and stage == "fit":
            record_split(self.trainer, self.keys, self._parts)
        self.prepare_views()

    def kept(self, samples: Sequence[Any] | np.ndarray) -> Sequence[Any] | np.ndarray:
        """The samples behind a cache, if there is one."""
        return samples

    @property
    def known(self) -> np.ndarray:
        """After ``setup``, which samples have a label, bool ``[N]``."""
        return self.labels >= 0 if self.task == "multiclass" else np.ones(len(self.labels), dtype=bool)

    def make_parts(self) -> Parts:
        """The samples of the test, the validation and the training part."""
        return make_parts(
            self.labels,
            self.val_size,
            self.test_size,
            self.split_seed,
            fold=self.fold,
            groups=self.groups,
            given=self.given_parts,
            known=self.known,
            least=self.num_classes if self.task == "multiclass" else 1,
        )

    def _with_label(self) -> np.ndarray:
        """The training samples that keep their label."""
        known = self.train_indices[self.known[self.train_indices]]
        return known[choose_labeled(self.labels[known], self.num_labels, self.effective_seed)]

    @property
    def _parts(self) -> Split:
        return Split(self.train_indices, self.val_indices, self.test_indices, self.labeled_indices)

    @property
    def targets(self) -> Tensor | None:
        """After ``setup``, the target of every sample: int64 ``[N]``, or float32 ``[N, K]`` or ``[N, D]``. None: it is
        read with the sample, as a mask is."""
        if self.task == "segmentation":
            return None
        return torch.as_tensor(self.labels, dtype=torch.int64 if self.task == "multiclass" else torch.float32)

    @property
    def num_unlabeled(self) -> int:
        """After ``setup``, how many ids unlabelled samples have: ``index`` is from 0 to ``num_unlabeled - 1``."""
        return len(self.unlabeled_indices)

    @property
    def effective_seed(self) -> int:
        """``seed``, or the one given to ``seed_everything``, or 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0) if self.seed is None else self.seed)

    def state_dict(self) -> dict[str, Any]:
        """What decides which labels are kept, and which samples are in which part."""
        return {"seed": self.effective_seed, **self._digests}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other labels or parts than the checkpoint's run had."""
        trainer = self.trainer
        if trainer is None:
            return
        seed = state_dict["seed"]
        if seed != self.effective_seed and trainer.state.fn == "fit":
            raise InvalidValueError(
                f"The checkpoint's run used seed {seed} for its labels and order, this one {self.effective_seed}. "
                f"Write --seed_everything={seed} or --data.seed={seed}."
            )
        check_split(state_dict, self._digests, resumes=trainer.state.fn == "fit")

    def train_dataloader(self) -> KeyedLoader:
        """This rank's training batches."""
        streams = [self._labeled_stream()]
        if self.unlabeled_batch_size:
            streams.append(Stream("unlabeled", self.unlabeled_indices, self.unlabeled_batch_size))
        pools = [self.labeled_indices, self.unlabeled_indices]
        return self._keyed_loader(
            TrainBatches(self._reader(), self.labeled_view(), self.unlabeled_view_of(), pools), streams
        )

    def _reader(self) -> Reader:
        return Reader(self.samples, self.targets, self.bad_samples)

    def _labeled_stream(self) -> Stream:
        labels = self.labels[self.labeled_indices]
        if self.balance and self.task != "multiclass":
            raise InvalidValueError(f"balance is {self.balance!r}, but the targets are no classes. Write balance=0.")
        if self.balance and self.weights is not None:
            raise InvalidValueError(
                f"balance is {self.balance!r}, but the samples have weights. Leave one of them out."
            )
        weights = balanced_weights(labels, self.balance) if self.balance else None
        if self.weights is not None:
            weights = self.weights[self.labeled_indices]
        classes = labels if self.task == "multiclass" else None
        return Stream("labeled", self.labeled_indices, self.batch_size, weights, classes)

    def _keyed_loader(self, batches: Any, streams: Sequence[Stream]) -> KeyedLoader:
        """A loader of the streams, as long as ``steps_per_epoch`` says; else as one pass over the last of them."""
        world, rank = self._world_and_rank
        steps = self.steps_per_epoch
        if not isinstance(steps, int):
            by_name = {stream.name: stream for stream in streams}
            paced = streams[-1] if steps is None else by_name[steps]
            steps = -(-len(paced.indices) // (paced.batch_size * world))
        sampler_class = FixedSampler if getattr(self.trainer, "overfit_batches", 0) else KeyedSampler
        sampler = sampler_class(streams, steps, seed=self.effective_seed, num_replicas=world, rank=rank)
        return KeyedLoader(batches, sampler, num_workers=self._workers, pin_memory=self._on_cuda())

    def plain_train_dataloader(self) -> DataLoader | list:
        """Batches of the labelled training samples, not augmented, in fixed order, for batch norm's statistics."""
        return self._eval_dataloader(self.labeled_indices)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of the validation part."""
        return self._eval_dataloader(self.val_indices, "val_size")

    def test_dataloader(self) -> DataLoader | list:
        """Batches of the test part."""
        return self._eval_dataloader(self.test_indices, "test_size")

    def predict_dataloader(self) -> DataLoader | list:
        """Batches of the test part."""
        return self._eval_dataloader(self.test_indices, "test_size")

    def _eval_dataloader(self, indices: np.ndarray, size: str | None = None) -> DataLoader | list:
        if not len(indices):
            doing = None if self.trainer is None else self.trainer.state.fn
            if size and doing is not None and doing != "fit":
                rank_zero_warn(f"There is no sample to {doing.value} on; {size} is {getattr(self, size)}.")
            return no_batches()
        world, rank = self._world_and_rank
        workers = self._workers
        return DataLoader(
            EvalBatches(self._reader(), indices, self.eval_view()),
            sampler=EvalSampler(len(indices), self.eval_batch_size, world, rank),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=quiet_opencv,
            pin_memory=self._on_cuda(),
        )

    @property
    def _workers(self) -> int:
        return worker_count(self.trainer, self.in_memory) if self.num_workers is None else self.num_workers

    def teardown(self, stage: str) -> None:
        """Tell of the samples that were skipped: each rank of those that it has read."""
        if self.bad_samples is not None and self.bad_samples.count:
            world, rank = self._world_and_rank
            warnings.warn(f"{f'Rank {rank}: ' if world > 1 else ''}{self.bad_samples.report()}", stacklevel=2)

    def on_exception(self, exception: BaseException) -> None:
        """End the training's worker processes, which the Trainer forgets if the error came from a validation: torch
        waits 5 s for each when the garbage collector finds them."""
        if self.trainer is not None and self.trainer.validating:
            self.trainer.fit_loop.teardown()

    @property
    def _world_and_rank(self) -> tuple[int, int]:
        return data_ranks(self.trainer) if self.trainer else (1, 0)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
