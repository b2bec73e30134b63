"""Datasets that the Hugging Face library itself writes and reads, over all ways in which it keeps images."""

import pickle

import numpy as np
import pytest

from lightning_tuning import HuggingFaceDataModule
from lightning_tuning.errors import InvalidValueError
from tests.data.image_files import DEEP, GOOD, RGB, jpeg, png, three

pytestmark = pytest.mark.references
ARGUMENTS = {"image_size": 16, "resize": "squash", "mean": [0.0] * 3, "std": [1.0] * 3, "val_size": 4, "test_size": 4}


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, without a network and with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def stored(number):
    """The bytes of an image of one colour."""
    return png(np.full((16, 16, 3), number, np.uint8), 2)


@pytest.fixture
def rows(datasets):
    """30 rows with a column for each way to keep images, and for each kind of target."""
    features = {
        "image": datasets.Image(),
        "bytes": datasets.Value("binary"),
        "array": datasets.Array3D((16, 16, 3), "uint8"),
        "lists": datasets.List(datasets.List(datasets.Value("uint8"))),
        "label": datasets.ClassLabel(names=["even", "odd", "none of it"]),
        "tags": datasets.List(datasets.ClassLabel(names=["red", "big"])),
        "word": datasets.Value("string"),
        "age": datasets.Value("float32"),
    }
    columns = {
        "image": [{"bytes": stored(number), "path": None} for number in range(30)],
        "bytes": [stored(number) for number in range(30)],
        "array": [np.full((16, 16, 3), number, np.uint8) for number in range(30)],
        "lists": [np.full((16, 16), number, np.uint8) for number in range(30)],
        "label": [number % 2 for number in range(30)],
        "tags": [[0] * (number % 2) + [1] * (number % 3 == 0) for number in range(30)],
        "word": [["a", "b"][number % 2] for number in range(30)],
        "age": [number / 2 for number in range(30)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def numbers_of(loader):
    return [int(value) for x, _ in loader for value in (x[:, 0, 0, 0] * 255).round()]


def set_up(path, **kwargs):
    datamodule = HuggingFaceDataModule(str(path), **{**ARGUMENTS, **kwargs})
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("column", ["image", "bytes", "array", "lists"])
@pytest.mark.parametrize("form", [None, "torch"])
def test_images_of_a_saved_dataset(column, form, rows, tmp_path):
    rows.with_format(form).save_to_disk(tmp_path / "rows")
    for workers in (0, 1):
        data = set_up(tmp_path / "rows", image=column, num_workers=workers)
        assert numbers_of(data.test_dataloader()) == data.test_indices.tolist()
    assert numbers_of(data.plain_train_dataloader()) == data.train_indices.tolist()
    samples = pickle.loads(pickle.dumps(data.samples))
    assert [int(image[0, 0, 0]) for image in samples] == [*range(30)]
    assert samples.identity(3) == set_up(tmp_path / "rows", image=column).samples.identity(3)


def test_targets(rows, tmp_path):
    rows.save_to_disk(tmp_path / "rows")
    data = set_up(tmp_path / "rows")
    assert data.class_names == ("even", "odd", "none of it")
    assert data.labels.tolist() == [number % 2 for number in range(30)]
    assert set_up(tmp_path / "rows", target="word").class_names == ("a", "b")
    data = set_up(tmp_path / "rows", target="tags", task="multilabel")
    assert data.labels.tolist() == [[number % 2, number % 3 == 0] for number in range(30)]
    assert data.class_names == ("red", "big")
    data = set_up(tmp_path / "rows", target="age", task="regression")
    assert data.labels.tolist() == [[number / 2] for number in range(30)]


def test_splits_of_a_saved_dictionary(datasets, rows, tmp_path):
    splits = {"train": rows.select(range(20)), "test": rows.select(range(20, 30))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "rows")
    data = set_up(tmp_path / "rows", test_split="test", test_size=None)
    assert sorted(numbers_of(data.test_dataloader())) == [*range(20, 30)]
    with pytest.raises(InvalidValueError, match="has no split 'val'; it has 'train', 'test'"):
        set_up(tmp_path / "rows", val_split="val")


def test_a_folder_that_the_library_reads(datasets, tmp_path):
    """Decoded here: 16 bits are scaled and not cut off, and the EXIF rotation is applied."""
    pictures = {"deep": GOOD["PNG, 16 bits"][0], "turned": jpeg(orientation=6)}
    for split, count in (("train", 4), ("test", 2)):
        for name, data in pictures.items():
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "pets" / split / name / f"{number}.png").write_bytes(data)
    data = set_up(tmp_path / "pets", test_split="test", val_size=0, test_size=None)
    assert data.class_names == ("deep", "turned")
    assert [len(data.train_indices), len(data.test_indices)] == [8, 4]
    first = {name: data.samples[data.labels.tolist().index(label)] for label, name in enumerate(data.class_names)}
    np.testing.assert_array_equal(first["deep"], three(np.rint(DEEP / 257)))
    assert np.abs(first["turned"].astype(int) - np.rot90(RGB, -1)).max() < 20


@pytest.mark.parametrize("kwargs", [{"path": "nobody/nothing"}, {"path": "{here}/gone"}, {"split": "tst"}])
def test_what_cannot_be_loaded(kwargs, rows, tmp_path):
    (tmp_path / "rows").mkdir()
    rows.select_columns(["bytes", "label"]).to_parquet(tmp_path / "rows" / "train.parquet")
    kwargs = {"path": "{here}/rows", **kwargs}
    path = kwargs.pop("path").format(here=tmp_path)
    with pytest.raises(InvalidValueError, match=f"The dataset '{path}' cannot be loaded: .+") as raised:
        set_up(path, **kwargs)
    assert "\n" not in str(raised.value)
    assert len(set_up(tmp_path / "rows", image="bytes").labels) == 30
