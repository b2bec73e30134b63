"""Images in arrays that stay on disk: the same as those in memory, without being there."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lightning_tuning import ArrayDataModule
from lightning_tuning.data import KeyedLoader
from lightning_tuning.data.stored_images import StoredImages
from lightning_tuning.errors import InvalidValueError

from .pictures import Watcher, digest, trainer


def images(count, size=8, channels=(3,), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, *channels)).astype(np.uint8)


@pytest.fixture
def both(tmp_path):
    """Writes the same arrays as one file and as a folder; their paths."""

    def make(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(tmp_path / "data" / f"{name}.npy", array)
        return str(tmp_path / "data.npz"), str(tmp_path / "data")

    return make


def batches(data):
    data.setup()
    loader = data.train_dataloader()
    seen = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        seen += [digest(batch) for batch in loader]
    return seen + [digest(batch) for part in (data.val_dataloader(), data.test_dataloader()) for batch in part]


@pytest.mark.parametrize("size", [None, 4, 12])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("xtr", "ytr", "xte", "yte"), ("x_train", "y_train")]
)
def test_it_is_the_file_bit_for_bit(both, size, channels, names):
    arrays = [images(30, channels=channels), np.arange(30) % 3, images(9, channels=channels, seed=1), np.arange(9) % 3]
    paths = both(**dict(zip(names, arrays, strict=False)))
    kwargs = {"image_size": size, "val_size": 6, "batch_size": 4, "augment": "strong", "unlabeled_batch_size": 6}
    in_memory, on_disk = (ArrayDataModule(path, **kwargs) for path in paths)
    assert batches(on_disk) == batches(in_memory)
    assert isinstance(on_disk.samples, StoredImages)
    assert isinstance(in_memory.samples, np.ndarray)
    assert len(on_disk.samples) == len(in_memory.samples) == (39 if len(names) == 4 else 30)
    for index in range(len(on_disk.samples)):
        assert (on_disk.samples[index] == in_memory.samples[index]).all()
    for name in ("train_indices", "val_indices", "test_indices", "labels"):
        assert (getattr(on_disk, name) == getattr(in_memory, name)).all()
    assert (on_disk.normalize.mean, on_disk.normalize.std) == (in_memory.normalize.mean, in_memory.normalize.std)
    assert (on_disk.image_size, on_disk.in_channels) == (size or 8, in_memory.in_channels)
    if len(names) == 4:
        assert on_disk.test_indices.tolist() == list(range(30, 39))


def test_a_sequence_of_several_files(both, tmp_path):
    first, second, third = images(3), images(1, seed=1), images(4, seed=2)
    both(a=first, b=second, c=third)
    stored = StoredImages([tmp_path / "data" / f"{name}.npy" for name in "abc"], 8)
    whole = np.concatenate([first, second, third])
    assert len(stored) == 8
    for index in range(8):
        assert (stored[index] == whole[index]).all()
        assert stored[np.int64(index)].flags.writeable  # a copy, not the file
    assert (np.stack([*stored]) == whole).all()
    assert (np.stack(stored[1:7:2]) == whole[1:7:2]).all()
    for index in (8, 100):
        with pytest.raises(IndexError):
            stored[index]
    stored[0][:] = 0
    assert (stored[0] == whole[0]).all()


def test_what_travels_to_a_worker_are_paths(both, tmp_path):
    both(a=images(200, 16))
    stored = StoredImages([tmp_path / "data" / "a.npy"], 16)
    expected = stored[7]
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    assert (pickle.loads(sent)[7] == expected).all()


@pytest.mark.slow
def test_spawned_workers(both):
    _, path = both(x_train=images(24), y_train=np.arange(24) % 2)
    data = ArrayDataModule(path, augment="strong", batch_size=4)
    expected = batches(data)[: 2 * 5]
    loader = data.train_dataloader()
    spawned = KeyedLoader(loader.dataset, loader.sampler, 2, multiprocessing_context="spawn")
    seen = []
    for epoch in range(2):
        spawned.sampler.set_epoch(epoch)
        seen += [digest(batch) for batch in spawned]
    assert seen == expected


def test_the_images_are_not_loaded(both):
    """Of 24 megabytes a few images are in memory at a time; the file itself is mapped."""
    _, path = both(y_train=np.arange(2000) % 2)
    np.lib.format.open_memmap(f"{path}/x_train.npy", "w+", np.uint8, (2000, 64, 64, 3)).flush()
    data = ArrayDataModule(path, batch_size=2, steps_per_epoch=2)
    tracemalloc.start()
    try:
        data.setup()
        loaded = [x.shape for x, _ in data.train_dataloader()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded == [(2, 3, 64, 64)] * 2
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": None}, "{path} has no array x_train; it has x_test, y_test, y_train."),
        ({"y_test": None}, "{path} has x_test but no y_test."),
        ({"x_train": np.zeros((6, 8, 8, 3))}, "{path}: x_train is float64 [6, 8, 8, 3]; it must be uint8 [N, H, W] or"),
        (
            {"y_train": np.arange(5)},
            "{path}: y_train is int64 [5]; it must be integer class ids from 0, one for each of the 6",
        ),
        (
            {"x_test": images(2, 9)},
            "{path}: the images of x_test are [9, 9, 3], those of x_train [8, 8, 3]; they must be",
        ),
        ({"x_test": images(2, channels=())}, "{path}: the images of x_test are [8, 8, 1], those of x_train [8, 8, 3];"),
        ({"y_train": np.array([{}] * 6)}, "{path}: x_train or y_train holds objects or is no whole array: "),
        ({"x_train": images(0), "y_train": np.arange(0)}, "{path}: x_train holds no image."),
    ],
)
def test_folders_that_do_not_fit(both, arrays, message):
    good = {"x_train": images(6), "y_train": np.arange(6) % 2, "x_test": images(2), "y_test": np.arange(2)}
    _, path = both(**{name: array for name, array in {**good, **arrays}.items() if array is not None})
    with pytest.raises(InvalidValueError) as raised:
        ArrayDataModule(path).setup()
    assert str(raised.value).startswith(message.format(path=path))


@pytest.mark.parametrize("keep", [0, 60, -10])
def test_files_that_are_cut(both, keep):
    _, path = both(x_train=images(6), y_train=np.arange(6) % 2)
    with open(f"{path}/x_train.npy", "r+b") as file:
        size = file.seek(0, 2)
        file.truncate(keep % size)
    with pytest.raises(InvalidValueError, match="x_train or y_train holds objects or is no whole array: "):
        ArrayDataModule(path).setup()


def test_it_trains_with_workers(both, tmp_path):
    paths = both(x_train=images(24), y_train=np.arange(24) % 2, x_test=images(4), y_test=np.arange(4) % 2)
    seen = []
    for path, num_workers in zip(paths, (0, 2), strict=True):
        model = Watcher()
        data = ArrayDataModule(path, batch_size=4, val_size=4, num_workers=num_workers, augment="strong")
        trainer(tmp_path, max_epochs=2).fit(model, data)
        seen.append((model.seen, model.evaluated))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 10


def test_places_are_counted_from_the_end_too(both):
    train, test = images(5), images(3, seed=1)
    _, folder = both(x_train=train, y_train=np.arange(5), x_test=test, y_test=np.arange(3))
    stored = StoredImages([Path(folder, "x_train.npy"), Path(folder, "x_test.npy")], 8)
    np.testing.assert_array_equal(stored[-1], test[-1])
    np.testing.assert_array_equal(stored[-8], train[0])
    assert [image.sum() for image in stored] == [image.sum() for image in (*train, *test)]
    for index in (8, -9):
        with pytest.raises(IndexError):
            stored[index]
