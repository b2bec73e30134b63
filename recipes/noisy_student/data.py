"""Digits of which a part keeps its label and the rest gets a teacher's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_tuning.data import DigitsDataModule
from lightning_tuning.data.batches import Reader, TrainBatches
from lightning_tuning.data.loader import KeyedLoader
from lightning_tuning.data.sampler import Stream
from lightning_tuning.errors import InvalidValueError


class PseudoLabeledDigits(DigitsDataModule):
    """Batches ``(x, target)`` of labelled digits and of digits with a teacher's soft labels, augmented alike.

    ``predict`` goes over the training images that have no label, without augmentation: what the next student is taught.

    Args:
        pseudo_labels: An ``.npz`` file with ``indices``, int64 ``[M]``, the images (one may come several times), and
            ``probabilities``, ``[M, C]``. None: labelled images alone.
        pseudo_batch_size: Images with a teacher's label for each step, besides the ``batch_size`` labelled ones.
        **kwargs: See ``DigitsDataModule``.
    """

    def __init__(self, pseudo_labels: str | None = None, pseudo_batch_size: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("pseudo_labels", "pseudo_batch_size", logger=False)
        self.pseudo_labels, self.pseudo_batch_size = pseudo_labels, pseudo_batch_size

    @property
    def without_label(self) -> np.ndarray:
        """After ``setup``, the training images whose label is not used, ``[N]``."""
        return np.setdiff1d(self.train_indices, self.labeled_indices)

    def train_dataloader(self) -> KeyedLoader:
        if self.pseudo_labels is None:
            return super().train_dataloader()
        with np.load(self.pseudo_labels) as file:
            indices, probabilities = file["indices"], file["probabilities"]
        if not np.isin(indices, self.without_label).all():
            raise InvalidValueError(
                f"{self.pseudo_labels} labels images that have a label or are not for training: it was made with "
                "another seed or num_labels."
            )
        streams = [
            Stream("labeled", self.labeled_indices, self.batch_size),
            Stream("pseudo", indices, self.pseudo_batch_size),
        ]
        soft = torch.zeros(len(self.labels), self.num_classes)
        soft[torch.from_numpy(self.labeled_indices)] = torch.eye(self.num_classes)[self.labels[self.labeled_indices]]
        soft[torch.from_numpy(indices)] = torch.from_numpy(probabilities).float()
        batches = TrainBatches(Reader(self.samples, soft), self.labeled_view(), {}, [self.train_indices])
        return self._keyed_loader(Joined(batches), streams)

    def predict_dataloader(self) -> DataLoader | list:
        return self._eval_dataloader(self.without_label)


class Joined(Dataset):
    """One batch of the samples of all streams.

    Args:
        batches: Makes the batch of one stream.
    """

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: tuple) -> tuple[Tensor, Tensor]:
        x, target = zip(*(self.batches[(keys,)] for keys in step), strict=True)
        return torch.cat(x), torch.cat(target)
