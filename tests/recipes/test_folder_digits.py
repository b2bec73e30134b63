"""The recipe's files are scikit-learn's digits, and its configurations train on them."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lightning_tuning import ImageFolderDataModule


@pytest.fixture(scope="module")
def folder(built):
    return built("folder_digits")


def test_each_digit_is_one_file_in_the_folder_of_its_class(folder):
    images, digits = load_digits(return_X_y=True)
    files = [path for path in (folder / "data" / "folder_digits").rglob("*") if path.is_file()]
    parts = [path.relative_to(folder / "data" / "folder_digits").parts[0] for path in files]
    numbers = [int(path.stem) for path in files]

    assert sorted(numbers) == list(range(1797))
    assert {part: parts.count(part) for part in parts} == {"train": 100, "test": 360, "unlabeled": 1337}
    for path, part, number in zip(files, parts, numbers, strict=True):
        assert path.suffix == (".jpg" if number % 10 == 0 else ".png")
        assert path.parent.name == ("unlabeled" if part == "unlabeled" else str(digits[number]))
    for path, number in list(zip(files, numbers, strict=True))[::50]:
        small = np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(small.ravel(), images[number])[0, 1] > 0.97


def test_the_datamodule_takes_its_labels_from_train_alone(folder):
    data = ImageFolderDataModule(
        str(folder / "data" / "folder_digits"), image_size=16, in_channels=1, val_size=20, num_labels=40, seed=0
    )
    data.setup()

    def places(indices):
        return {data.keys[index].split("/")[0] for index in indices}

    assert (len(data.test_indices), len(data.val_indices), len(data.labeled_indices)) == (360, 20, 40)
    assert places(data.test_indices) == {"test"}
    assert places(data.val_indices) == places(data.labeled_indices) == {"train"}
    assert places(data.unlabeled_indices) == {"train", "unlabeled"}
    assert len(data.unlabeled_indices) == 80 + 1337


def test_a_fold_is_held_out(folder, fit):
    metrics, run = fit(folder, "folder_digits", "--data.num_labels=null", "--data.fold=2/5")

    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["part"] for row in rows) == {"train": 80 + 1337, "val": 20, "test": 360}
    assert 0 <= metrics["test/accuracy"] <= 1


def test_fixmatch_learns_from_the_folder_unlabeled(folder, fit):
    metrics, run = fit(
        folder, "folder_digits", "--data.unlabeled_batch_size=8", configs=("config.yaml", "fixmatch.yaml")
    )

    assert "train/fixmatch" in (run / "metrics.jsonl").read_text()
    assert metrics["test/loss"] > 0
