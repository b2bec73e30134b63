"""Vectors from a table: CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.targets import TASKS, read_classes, read_features, read_weights
from lightning_tuning.data.text_table import no_column, read_table
from lightning_tuning.errors import InvalidValueError, check_choice, check_range

_SMALLEST_SCALE = 1e-12


class VectorView:
    """One view of a batch of vectors.

    Args:
        noise: Standard deviation of the Gaussian noise that is added, at least 0.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __call__(self, samples: Sequence[np.ndarray], seeds: np.ndarray | None) -> Tensor:
        """Of vectors float32 ``[F]`` the batch ``[B, F]``."""
        x = np.stack(samples)
        if self.noise and seeds is not None:
            draws = (np.random.Generator(np.random.Philox(key=seed)) for seed in seeds)
            x = x + self.noise * np.stack([draw.standard_normal(x.shape[1], np.float32) for draw in draws])
        return torch.from_numpy(x)


class TableDataModule(KeyedDataModule):
    """Batches of :class:`KeyedDataModule` whose ``x`` are vectors, float32 ``[N, F]``, from the numbers of a table.

    ``y`` is int64 ``[N]``, float32 ``[N, K]`` of 0 and 1, or float32 ``[N, D]``, by ``task``. Features are standardised
    with mean and standard deviation of the *training part*; a feature that is constant there becomes 0. Targets of
    ``regression`` are standardised in the same way, if wanted. With ``unlabeled_batch_size`` a row's class may be left
    empty: it is then an unlabelled sample.

    Args:
        path: The table: ``.csv``, ``.tsv`` or ``.parquet``, with the columns' names in the first line.
        target: The column of the targets, or a list of columns.
        features: The columns of the features. None: all others, without ``group`` and ``weight``.
        task: ``multiclass``: ``target`` holds the classes' names. ``multilabel``: each of its columns is 1 where a
            sample has the label, else 0. ``regression``: its columns are values.
        group: A column that says what a row belongs to, such as a patient. No group is in two parts; the sizes of the
            parts are then met as nearly as the groups allow. None: every row is its own.
        weight: A column of numbers: how often a labelled row is drawn in training, in proportion. None: each once in a
            pass.
        standardize: Whether features get mean 0 and deviation 1.
        standardize_target: Whether values of ``regression`` do; ``target_mean`` and ``target_std`` then lead back.
        delimiter: What separates the fields, one character. None: a comma or a tab, by the file's name.
        noise: Standard deviation of the Gaussian noise on labelled samples in training and on the view 'strong' of
            unlabelled ones, in the units of the standardised features, at least 0. Off: 0.
        **kwargs: See :class:`KeyedDataModule`.

    Attributes:
        num_features: After ``setup``, the length F of a vector.
        feature_names: After ``setup``, the features' columns.
        mean: After ``setup``, what was taken from each feature, float64 ``[F]``; ``std`` likewise what it was divided
            by.

    Raises:
        InvalidValueError: An argument is not allowed, or the file is no such table.
    """

    def __init__(
        self,
        path: str,
        target: str | list[str],
        features: list[str] | None = None,
        task: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        group: str | None = None,
        weight: str | None = None,
        standardize: bool = True,
        standardize_target: bool = False,
        noise: float = 0.0,
        delimiter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("task", task, TASKS)
        check_range("noise", noise)
        if standardize_target and task != "regression":
            raise InvalidValueError(f"standardize_target is for task='regression', but task is {task!r}.")
        self.path = path
        self.target = [target] if isinstance(target, str) else list(target)
        self.features = features
        self.task = task
        self.group = group
        self.weight = weight
        self.standardize = standardize
        self.standardize_target = standardize_target
        self.noise = noise
        self.delimiter = delimiter
        others = {*self.target, *([group] if group else []), *([weight] if weight else [])}
        if features is not None and (not features or others & {*features}):
            raise InvalidValueError(
                f"features is {features!r}; it must name at least one column, and neither the target, the group nor "
                "the weight."
            )

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """The features, float32 ``[N, F]``, as they stand in the file, and the targets."""
        named = [name for name in (self.group, self.weight) if name]
        blank = self.task == "multiclass" and self.unlabeled_batch_size > 0
        required = named if blank else [*self.target, *named]
        table = read_table(self.path, required=required, delimiter=self.delimiter)
        absent = next((name for name in (*self.target, *(self.features or ())) if name not in table), None)
        if absent is not None:
            raise InvalidValueError(no_column(self.path, absent, [*table]))
        self.weights = read_weights(self.weight, table[self.weight], self.path) if self.weight else None
        self.groups = np.array(table[self.group]) if self.group else None
        labels, names = read_classes({name: table[name] for name in self.target}, self.task, self.path, blank)
        self.class_names, self.num_classes = names, len(names)
        others = [name for name in table if name not in self.target and name not in named]
        self.feature_names = tuple(others if self.features is None else self.features)
        if not self.feature_names:
            raise InvalidValueError(
                f"{self.path} has no column besides {', '.join(self.target)}; features are missing."
            )
        self.num_features = len(self.feature_names)
        return read_features({name: table[name] for name in self.feature_names}, self.path), labels

    def prepare_views(self) -> None:
        samples = np.asarray(self.samples)
        self.mean, self.std = np.zeros(samples.shape[1]), np.ones(samples.shape[1])
        if self.standardize:
            self.mean, self.std = _moments(samples[self.train_indices])
            self.samples = ((samples - self.mean) / self.std).astype(np.float32)
        if self.standardize_target:
            self.target_mean, self.target_std = _moments(self.labels[self.train_indices])
            self.labels = ((self.labels - self.target_mean) / self.target_std).astype(np.float32)

    def labeled_view(self) -> VectorView:
        return VectorView(self.noise)

    def unlabeled_view_of(self) -> dict[str, VectorView]:
        return {"weak": VectorView(), "strong": VectorView(self.noise)}

    def eval_view(self) -> VectorView:
        return VectorView()


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column in float64; a constant one has deviation 1, so that it becomes 0."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    return mean, np.where(std <= _SMALLEST_SCALE * np.maximum(np.abs(mean), 1e-300), 1.0, std)
