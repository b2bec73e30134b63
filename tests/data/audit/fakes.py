"""Datamodules whose samples are bad in ways that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_tuning.data import BadSampleError, KeyedDataModule


class Samples(Sequence):
    """Given samples, of which some cannot be read. Counts how often each is asked for."""

    def __init__(self, samples, bad=()):
        self.samples, self.bad, self.asked = samples, dict(bad), []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.bad:
            raise self.bad[index]
        return self.samples[index]


class Given(KeyedDataModule):
    """Samples in parts as they are given."""

    def __init__(self, samples: Any, labels: Any, parts: str, task: str = "multiclass", names: Any = ("cat", "dog")):
        super().__init__()
        self.given, self.given_labels, self.letters = samples, np.asarray(labels), parts
        self.task, self.class_names, self.num_classes = task, tuple(names), len(names)

    def setup(self, stage: str | None = None) -> None:
        self.samples, self.labels = self.load()
        self.keys = [f"{index}.png" for index in range(len(self.labels))]
        letters = np.array([*self.letters])
        self.train_indices, self.val_indices, self.test_indices = (np.flatnonzero(letters == part) for part in "tvs")
        self.prepare_views()

    def load(self):
        return self.given, self.given_labels

    def prepare_views(self) -> None:
        for index in self.train_indices:
            self.samples[index]

    def labeled_view(self):
        raise NotImplementedError

    unlabeled_view_of = eval_view = labeled_view


def noise(seed, height=8, width=8, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def photographs(count=24):
    """24 images with everything wrong that can be, and what is expected of each: kinds of faults by index."""
    images = [noise(seed, 20 + seed, 30) for seed in range(count)]
    labels = np.arange(count) % 2
    parts = "t" * 16 + "v" * 4 + "s" * 4
    images[17] = images[3].copy()  # in val too, same label
    images[5] = images[4].copy()  # in train twice, another label
    images[6] = np.full((9, 9, 3), (7, 8, 9), np.uint8)
    images[8] = noise(99, 10, 50)
    labels[9] = 2
    bad = {
        1: BadSampleError("1.png", "it is truncated", "Copy it again."),
        20: BadSampleError("20.png", "it is empty", "Copy it again."),
        2: ZeroDivisionError("a bug"),
    }
    expected = {
        1: {"unreadable"},
        2: {"unreadable"},
        3: {"leak"},
        4: {"copy", "contradiction"},
        5: {"copy", "contradiction"},
        6: {"one_colour"},
        8: {"narrow"},
        9: {"label"},
        17: {"leak"},
        20: {"unreadable"},
    }
    return Given(Samples(images, bad), labels, parts), expected
