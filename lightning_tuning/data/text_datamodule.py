"""Texts from a table: CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.data.keyed_datamodule import KeyedDataModule
from lightning_tuning.data.synonyms import read_synonyms
from lightning_tuning.data.targets import TASKS, read_classes, read_weights
from lightning_tuning.data.text_pipeline import TEXT_PIPELINES, TextPipeline, named_text_transforms
from lightning_tuning.data.text_table import read_table
from lightning_tuning.data.transforms import VIEWS, view_names
from lightning_tuning.data.vocabulary import Vocabulary
from lightning_tuning.errors import InvalidValueError, check_choice, check_count


class TextView:
    """One view of a batch of texts.

    Args:
        pipeline: Augments a text with a seed.
        vocabulary: Turns texts into numbers.
        max_length: Most tokens of a text.
    """

    def __init__(self, pipeline: TextPipeline, vocabulary: Vocabulary, max_length: int) -> None:
        self.pipeline = pipeline
        self.vocabulary = vocabulary
        self.max_length = max_length

    def __call__(self, samples: Sequence[str], seeds: np.ndarray | None) -> dict[str, Tensor]:
        """``input_ids``, int64 ``[B, L]``, and ``attention_mask``, bool ``[B, L]``."""
        if seeds is not None:
            samples = [self.pipeline(text, seed) for text, seed in zip(samples, seeds.tolist(), strict=True)]
        batch = self.vocabulary.encode_batch(samples, self.max_length)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


class TextDataModule(KeyedDataModule):
    """Batches of :class:`KeyedDataModule` whose ``x`` are texts as numbers: a dictionary of ``input_ids``, int64
    ``[N, L]``, and ``attention_mask``, bool ``[N, L]``, True where a token stands; ``L`` is the batch's longest text.

    ``y`` is int64 ``[N]``, float32 ``[N, K]`` of 0 and 1, or float32 ``[N, D]``, by ``task``. With
    ``unlabeled_batch_size`` a row's class may be left empty: its text is an unlabelled sample. The vocabulary is made
    of the training part's texts, unlabelled ones included.

    Args:
        path: The table: ``.csv``, ``.tsv`` or ``.parquet``, with the columns' names in the first line.
        text: The column of the texts.
        target: The column of the targets, or a list of columns.
        task: ``multiclass``: ``target`` holds the classes' names. ``multilabel``: each of its columns is 1 where a
            sample has the label, else 0. ``regression``: its columns are values.
        group: A column that says what a text belongs to, such as an author. No group is in two parts. None: every text
            is its own.
        weight: A column of numbers: how often a labelled text is drawn in training, in proportion. None: each once in a
            pass.
        delimiter: What separates the fields, one character. None: a comma or a tab, by the file's name.
        quoted: Whether quotes enclose fields. False: they are ordinary characters, as in many TSV files of texts.
        augment: Augmentation of the labelled texts: 'none', 'weak' or 'strong'.
        unlabeled_views: Views of each unlabelled text, with spaces between: 'weak', 'strong', and further ones with
            their own random numbers, 'weak_2', 'strong_2', ... up to 'weak_8', 'strong_8'.
        synonyms: A ``.tsv`` or ``.json`` file with each word's synonyms. None: the augmentations go without.
        vocabulary: A file that ``Vocabulary.save`` wrote. None: it is made of the training part.
        vocabulary_size: Most tokens of a vocabulary that is made, the two special ones included, at least 3; the
            commonest are kept. None: all.
        min_count: How often a word must come in the training part to be in it, at least 1.
        lower: Whether capitals count as small letters.
        max_length: Most tokens of a text, at least 1; what comes behind them is cut off.
        **kwargs: See :class:`KeyedDataModule`.

    Attributes:
        vocab: After ``setup``, the :class:`Vocabulary`; ``len(vocab)`` is what an embedding needs.

    Raises:
        InvalidValueError: An argument is not allowed, or a file is not what it should be.
    """

    def __init__(
        self,
        path: str,
        text: str = "text",
        target: str | list[str] = "label",
        task: Literal["multiclass", "multilabel", "regression"] = "multiclass",
        group: str | None = None,
        weight: str | None = None,
        delimiter: str | None = None,
        quoted: bool = True,
        augment: str = "none",
        unlabeled_views: str = "weak strong",
        synonyms: str | None = None,
        vocabulary: str | None = None,
        vocabulary_size: int | None = None,
        min_count: int = 1,
        lower: bool = True,
        max_length: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("task", task, TASKS)
        check_choice("augment", augment, TEXT_PIPELINES)
        check_count("vocabulary_size", vocabulary_size, 3, optional=True)
        check_count("min_count", min_count, 1)
        check_count("max_length", max_length, 1)
        self._views = view_names(unlabeled_views)
        self.path = path
        self.text = text
        self.target = [target] if isinstance(target, str) else list(target)
        self.task = task
        self.group = group
        self.weight = weight
        self.delimiter = delimiter
        self.quoted = quoted
        self.augment = augment
        self.unlabeled_views = unlabeled_views
        self.synonyms = synonyms
        self.vocabulary = vocabulary
        self.vocabulary_size = vocabulary_size
        self.min_count = min_count
        self.lower = lower
        self.max_length = max_length
        columns = self._columns()
        if len(set(columns)) < len(columns):
            raise InvalidValueError(
                f"text is {text!r}, target {self.target!r}, group {group!r} and weight {weight!r}; they must be "
                "different columns."
            )

    def _columns(self) -> list[str]:
        return [self.text, *self.target, *(name for name in (self.group, self.weight) if name)]

    def load(self) -> tuple[list[str], np.ndarray]:
        """The texts and the targets."""
        columns = self._columns()
        blank = self.task == "multiclass" and self.unlabeled_batch_size > 0
        required = [name for name in columns if not (blank and name in self.target)]
        table = read_table(self.path, columns, required, delimiter=self.delimiter, quoted=self.quoted)
        self.groups = np.array(table[self.group]) if self.group else None
        self.weights = read_weights(self.weight, table[self.weight], self.path) if self.weight else None
        labels, names = read_classes({name: table[name] for name in self.target}, self.task, self.path, blank)
        self.class_names, self.num_classes = names, len(names)
        return table[self.text], labels

    def prepare_views(self) -> None:
        if self.vocabulary is None:
            texts = [self.samples[index] for index in self.train_indices.tolist()]
            self.vocab = Vocabulary.fit(texts, self.vocabulary_size, self.min_count, self.lower)
        else:
            self.vocab = Vocabulary.load(self.vocabulary)
        table = None if self.synonyms is None else read_synonyms(self.synonyms)
        self.pipelines = {
            name: TextPipeline(named_text_transforms(name.split("_")[0], table), salt)
            for salt, name in enumerate(("none", *VIEWS))
            if name in {*TEXT_PIPELINES, *self._views}
        }

    def labeled_view(self) -> TextView:
        return self._view(self.augment)

    def unlabeled_view_of(self) -> dict[str, TextView]:
        return {name: self._view(name) for name in self._views}

    def eval_view(self) -> TextView:
        return self._view("none")

    def _view(self, name: str) -> TextView:
        return TextView(self.pipelines[name], self.vocab, self.max_length)
