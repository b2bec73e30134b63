"""Datasets of Hugging Face as a datamodule, with a stand-in of the library that has what is used of it.

The library itself: tests/references/test_hugging_face.py.
"""

import pickle
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_tuning import HuggingFaceDataModule
from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.hugging_face_images import HuggingFaceImages
from lightning_tuning.errors import InvalidValueError

from .image_files import ALPHA, DEEP, GOOD, GREY, RGB, jpeg, over_white, png, three

SIZE = 16
ARGUMENTS = {"image_size": SIZE, "resize": "squash", "mean": [0.0] * 3, "std": [1.0] * 3, "num_workers": 0}


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class Value:
    def __init__(self, dtype):
        self.dtype = dtype

    def __eq__(self, other):
        return (type(self), self.dtype) == (type(other), getattr(other, "dtype", None))


class ClassLabel(Value):
    def __init__(self, names):
        super().__init__(f"ClassLabel({names})")
        self.names = names

    def __repr__(self):
        return self.dtype


class Array3D:
    pass


class List:
    def __init__(self, feature):
        self.feature = feature


class Table:
    """A dataset in memory."""

    def __init__(self, columns, features, form="torch", fingerprint="f"):
        self.columns, self.features, self.form, self._fingerprint = columns, features, form, fingerprint

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows):
        return {name: self.formatted(name, values[rows]) for name, values in self.columns.items()}

    def formatted(self, name, value):
        assert self.form != "torch"
        assert not (isinstance(self.features[name], Image) and self.features[name].decode)
        return np.asarray(value) if self.form == "numpy" else value

    def with_format(self, form):
        return Table(self.columns, self.features, form, self._fingerprint)

    def select_columns(self, names):
        columns, features = ({name: of[name] for name in names} for of in (self.columns, self.features))
        return Table(columns, features, self.form, self._fingerprint)

    def cast_column(self, name, feature):
        return Table(self.columns, {**self.features, name: feature}, self.form, self._fingerprint)


class DatasetsError(Exception):
    pass


class Library(SimpleNamespace):
    """The stand-in, which holds datasets by path and split, and notes what was asked for."""

    def __init__(self):
        exceptions = SimpleNamespace(DatasetsError=DatasetsError)
        super().__init__(Image=Image, Value=Value, exceptions=exceptions, held={}, asked=[])

    def load_dataset(self, path, name, split):
        self.asked.append((path, name, split))
        if path not in self.held:
            raise DatasetsError(f"Dataset {path}\n  is not there")
        if split not in self.held[path]:
            raise ValueError(f"Unknown split {split}.")
        return self.held[path][split]

    def load_from_disk(self, path):
        self.asked.append(path)
        return self.held[path]


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "datasets", library)
    return library


def image(number):
    return np.full((SIZE, SIZE, 3), number, dtype=np.uint8)


FEATURES = {
    "image": Image(),
    "label": ClassLabel(["ant", "bee", "cat"]),
    "owner": Value("string"),
    "tags": List(ClassLabel(["red", "big"])),
    "age": Value("float32"),
    "heed": Value("int64"),
    "text": Value("string"),
}


def table(numbers, **changes):
    """Rows of images that tell their number, in each way that the library keeps them."""
    numbers = [*numbers]
    columns = {
        "image": [{"bytes": png(image(number), 2), "path": None} for number in numbers],
        "label": [number % 3 for number in numbers],
        "owner": [f"owner {number // 4}" for number in numbers],
        "tags": [[0] * (number % 2) + [1] * (number % 5 == 0) for number in numbers],
        "age": [number / 2 for number in numbers],
        "heed": [*numbers],
        "text": ["x"] * len(numbers),
    }
    return Table({**columns, **changes}, FEATURES)


@pytest.fixture
def make(library):
    library.held["pets"] = {"train": table(range(60)), "valid": table(range(60, 66)), "test": table(range(70, 82))}

    def made(path="pets", **kwargs):
        datamodule = HuggingFaceDataModule(path, **{**ARGUMENTS, **kwargs})
        datamodule.setup()
        return datamodule

    return made


def numbers_of(x):
    return (x[:, 0, 0, 0] * 255).round().long().tolist()


def test_parts_of_one_split(make, library):
    data = make(name="small", val_size=12, test_size=12)
    assert library.asked == [("pets", "small", "train")]
    assert data.class_names == ("ant", "bee", "cat")
    assert data.num_classes == 3
    assert data.keys[59] == "train/59"
    assert [len(part) for part in (data.train_indices, data.val_indices, data.test_indices)] == [36, 12, 12]
    (x, y), *_ = data.test_dataloader()
    assert numbers_of(x) == data.test_indices.tolist()
    assert y.tolist() == (data.test_indices % 3).tolist()
    assert y.dtype == torch.int64


def test_splits_of_their_own(make):
    data = make(val_split="valid", test_split="test")
    assert data.train_indices.tolist() == [*range(60)]
    for loader, numbers in ((data.val_dataloader(), range(60, 66)), (data.test_dataloader(), range(70, 82))):
        (x, y), *_ = loader
        assert numbers_of(x) == [*numbers]
        assert y.tolist() == [number % 3 for number in numbers]
    assert data.keys[60:] == [*(f"valid/{row}" for row in range(6)), *(f"test/{row}" for row in range(12))]
    data = make(test_split="test", val_size=9)
    assert [len(data.train_indices), len(data.val_indices), len(data.test_indices)] == [51, 9, 12]


def test_other_targets_and_groups(make):
    data = make(target="tags", task="multilabel", group="owner", val_size=12, test_size=12)
    assert data.class_names == ("red", "big")
    _, y = next(iter(data.val_dataloader()))
    assert y.tolist() == [[index % 2, index % 5 == 0] for index in data.val_indices]
    parts = [{*(part // 4).tolist()} for part in (data.train_indices, data.val_indices, data.test_indices)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    data = make(target="age", task="regression")
    assert data.class_names == ("age",)
    assert data.labels.tolist() == [[number / 2] for number in range(60)]
    assert data.groups is None
    data = make(
        target="age", task="regression", weight="heed", val_size=0, test_size=0, batch_size=59, steps_per_epoch=30
    )
    assert data.weights.tolist() == [*range(60)]
    ages = torch.cat([y[:, 0] for _, y in data.train_dataloader()])
    drawn = np.bincount((2 * ages).int(), minlength=60)
    np.testing.assert_array_equal(drawn, np.arange(60))  # 1770 draws, weights that add up to 1770
    data = make(target="owner", val_size=0, test_size=0)
    assert data.class_names[:3] == ("owner 0", "owner 1", "owner 10")


def test_rows_without_a_class_are_unlabelled_samples_of_training(make, library):
    labels = [-1 if number < 20 else None if number < 24 else number % 3 for number in range(60)]
    library.held["pets"]["train"] = table(range(60), label=labels)
    data = make(unlabeled_batch_size=8, batch_size=4, val_size=6, test_size=6)
    assert {*range(24)} <= {*data.train_indices.tolist()}
    assert data.labeled_indices.min() >= 24
    assert len(data.labeled_indices) == 24
    batch = next(iter(data.train_dataloader()))
    assert batch["labeled"][1].min() >= 0
    with pytest.raises(InvalidValueError, match=r"pets: 24 rows have no class, such as train/0. Take them out, or use"):
        make()
    library.held["pets"]["test"] = table(range(4), label=[0, 1, -1, -1])
    with pytest.raises(InvalidValueError, match=r"pets: 2 rows have no class, such as test/2. Leave their split out."):
        make(split="valid", test_split="test", unlabeled_batch_size=8)


@pytest.mark.parametrize("several", [False, True])
def test_folders_that_were_saved(several, make, library, tmp_path):
    path = str(tmp_path)
    (tmp_path / ("dataset_dict.json" if several else "state.json")).write_text("{}")
    splits = library.held["pets"]
    library.held[path] = splits if several else splits["train"]
    data = make(path, test_split="test" if several else None)
    assert {*library.asked} == {path}
    assert len(data.labels) == (72 if several else 60)
    with pytest.raises(InvalidValueError, match=re.escape(f"name is 'x', but {path} was saved to disk, without")):
        make(path, name="x")
    has = "'train', 'valid', 'test'" if several else "'train'"
    with pytest.raises(InvalidValueError, match=re.escape(f"{path} has no split 'train[:5]'; it has {has}.")):
        make(path, split="train[:5]")


def images_of(column, feature=None, **kwargs):
    rows = Table({"image": column}, {"image": feature or Array3D()}, kwargs.pop("form", None))
    return HuggingFaceImages({"pets/train": rows}, "image", **kwargs)


def test_images_in_each_form(tmp_path):
    (tmp_path / "a.png").write_bytes(png(GREY, 0))
    images = images_of(
        [
            {"bytes": GOOD["PNG, 16 bits"][0], "path": "a/b.png"},
            {"bytes": None, "path": str(tmp_path / "a.png")},
            jpeg(orientation=6),
            RGB.astype(np.int64),
            GREY.astype(np.int64),
            GREY[..., None],
            np.dstack([RGB, ALPHA]),
            RGB.tolist(),
        ]
    )
    turned = np.rot90(RGB, -1)
    expected = [
        three(np.rint(DEEP / 257)),
        three(GREY),
        turned,
        RGB,
        three(GREY),
        three(GREY),
        over_white(RGB, ALPHA),
        RGB,
    ]
    assert len(images) == len(expected)
    for index, pixels in enumerate(expected):
        assert images[index].dtype == np.uint8
        assert images[index].flags.c_contiguous
        assert images[index].flags.writeable
        assert images[index].shape == images.shape(index) == pixels.shape
        assert np.abs(images[index] - pixels.astype(float)).max() <= (20 if pixels is turned else 0)
    assert images_of([GREY], channels=1)[0].shape == (16, 24, 1)


def test_images_of_several_tables():
    tables = {
        name: Table({"image": [image(n) for n in numbers]}, {"image": Array3D()}, "numpy", name)
        for name, numbers in {"a": [1, 2], "b": [3], "c": [4, 5]}.items()
    }
    images = HuggingFaceImages(tables, "image")
    assert [int(each[0, 0, 0]) for each in images] == [1, 2, 3, 4, 5]
    assert images[-2][0, 0, 0] == 4
    assert [images.identity(index) for index in (0, 2, 4)] == ["a 0 3", "b 0 3", "c 1 3"]
    assert pickle.loads(pickle.dumps(images))[3][0, 0, 0] == 4
    with pytest.raises(IndexError):
        images[5]


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ({"bytes": None, "path": None}, "pets/train/0: it is None. Take the row out of the dataset."),
        (None, "pets/train/0: it is None. Take the row out of the dataset."),
        ({"bytes": b"<html>", "path": "a.jpg"}, "pets/train/0: it is no image but text that begins with '<html>'."),
        (jpeg()[:-2], "pets/train/0: it is truncated."),
        ({"bytes": None, "path": "no/a.png"}, "no/a.png: it does not exist."),
        (RGB / 255, "pets/train/0: it is float64 [16, 24, 3]. It must be integers [H, W] or [H, W, C] with 1 to 4"),
        (np.arange(5), "pets/train/0: it is int64 [5]. It must be"),
        (np.zeros((3, 16, 24), int), "pets/train/0: it is int64 [3, 16, 24]. It must be"),
        (np.zeros((0, 4), int), "pets/train/0: it is int64 [0, 4]. It must be"),
        (np.full((4, 4), 256), "pets/train/0: its values are from 256 to 256. They must be from 0 to 255."),
        (np.full((4, 4), -1), "pets/train/0: its values are from -1 to -1. They must be from 0 to 255."),
    ],
)
def test_bad_images(stored, text):
    with pytest.raises(BadSampleError, match=re.escape(text)):
        images_of([stored])[0]


def test_decoded_images_can_be_cached(make, tmp_path):
    data = make(cache=str(tmp_path / "cache"), val_size=0, test_size=12)
    for _ in range(2):
        assert numbers_of(next(iter(data.test_dataloader()))[0]) == data.test_indices.tolist()
    assert data.samples.report().startswith("cached 12 of 60 images")


def test_arrays_come_as_those_of_numpy(make, library):
    columns = {"image": [image(number).tolist() for number in range(60)], "label": [number % 3 for number in range(60)]}
    library.held["arrays"] = {"train": Table(columns, {"image": Array3D(), "label": Value("int64")})}
    data = make("arrays")
    assert data.class_names == ("0", "1", "2")
    assert data.samples.tables["arrays/train"].form == "numpy"
    np.testing.assert_array_equal(data.samples[7], image(7))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"path": "gone"}, "The dataset 'gone' cannot be loaded: Dataset gone is not there"),
        ({"split": "tst"}, "The dataset 'pets' cannot be loaded: Unknown split tst."),
        (
            {"target": "lable"},
            "pets, split 'train', has no column 'lable'; did you mean 'label'? It has 'image', 'label',",
        ),
        ({"image": "img"}, "pets, split 'train', has no column 'img'"),
        (
            {"image": "text"},
            "pets: the column 'text' is string; it must hold images, bytes or arrays. Of paths, `dataset",
        ),
        ({"test_split": "train"}, "split, val_split and test_split are ['train', None, 'train']; they must differ."),
        (
            {"test_split": "other"},
            "'label' is ClassLabel(['ant', 'bee', 'cat']) in split 'train', but ClassLabel(['ant'])",
        ),
        ({"split": "none"}, "pets, split 'none', has no rows."),
        (
            {"target": ["label", "label"]},
            "image is 'image', target ['label', 'label'], group None and weight None; they must be",
        ),
        ({"target": []}, "they must be different columns"),
        ({"group": "label"}, "they must be different columns"),
        ({"group": "tags"}, "pets, train/0: 'tags' is [1]; it must be a number or text."),
        ({"target": "tags"}, "pets, row 0: 'tags' is [1]; it must be an integer from 0 to 1."),
        ({"task": "detection"}, "task is 'detection'"),
    ],
)
def test_mistakes(kwargs, text, make, library):
    other = Table(library.held["pets"]["test"].columns, {**FEATURES, "label": ClassLabel(["ant"])})
    library.held["pets"] |= {"other": other, "none": table([])}
    with pytest.raises(InvalidValueError, match=re.escape(text)):
        make(**kwargs)


@pytest.mark.parametrize("there", [False, True])
def test_without_the_library(there, monkeypatch, tmp_path):
    """Also where a folder of its name is found in its place."""
    (tmp_path / "datasets").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace() if there else None)
    with pytest.raises(InvalidValueError) as raised:
        HuggingFaceDataModule("pets").setup()
    assert str(raised.value) == (
        "HuggingFaceDataModule needs datasets: run `pip install 'lightning-tuning[datasets]'`."
    )
