import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_tuning import ArrayDataModule, ImageClassifier
from lightning_tuning.errors import InvalidValueError


@pytest.fixture
def write(tmp_path):
    """Writes a file; every image is filled with its own number, the label is its last digit's half."""

    def write(name="data.npz", train=60, test=20, size=6, channels=(), **arrays):
        def images(numbers):
            return np.broadcast_to(
                numbers.reshape(-1, 1, 1, *[1] * len(channels)), (len(numbers), size, size, *channels)
            )

        parts = {"train": np.arange(train), "test": np.arange(train, train + test)}
        made = {}
        for part, numbers in parts.items():
            if len(numbers):
                made[f"x_{part}"] = images(numbers.astype(np.uint8))
                made[f"y_{part}"] = numbers % 5
        made = {key: value for key, value in {**made, **arrays}.items() if value is not None}
        np.savez_compressed(tmp_path / name, **made)
        return str(tmp_path / name)

    return write


def numbers(datamodule, indices):
    return datamodule.images[indices][:, 0, 0, 0].tolist()


def test_the_files_own_test_part_is_the_test_part(write):
    data = ArrayDataModule(write(), val_size=10, batch_size=5)
    data.setup()
    assert numbers(data, data.test_indices) == list(range(60, 80))
    assert len(data.val_indices) == 10
    assert sorted(numbers(data, data.val_indices) + numbers(data, data.train_indices)) == list(range(60))
    assert data.labels.tolist() == [n % 5 for n in range(80)]
    assert (data.num_classes, data.in_channels, data.image_size) == (5, 1, 6)
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (5, 1, 6, 6)
    assert sum(len(y) for _, y in data.test_dataloader()) == 20


def test_a_smaller_test_part_is_stratified(write):
    data = ArrayDataModule(write(), test_size=10)
    data.setup()
    assert np.bincount(data.labels[data.test_indices]).tolist() == [2] * 5
    assert min(numbers(data, data.test_indices)) >= 60


def test_without_a_test_part_one_is_taken_from_the_training_images(write):
    data = ArrayDataModule(write(test=0))
    data.setup()
    assert len(data.test_indices) == 10
    assert sorted(numbers(data, data.test_indices) + numbers(data, data.train_indices)) == list(range(60))


def test_short_names_and_colour(write):
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    path = write(train=0, test=0, xtr=x, ytr=np.arange(12) % 2)
    data = ArrayDataModule(path, image_size=4, test_size=2, batch_size=4)
    data.setup()
    assert data.in_channels == 3
    assert data.images.shape == (12, 4, 4, 3)
    np.testing.assert_allclose(data.images[3], x[3].reshape(4, 2, 4, 2, 3).mean((1, 3)), atol=0.51)
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 4, 4)


def test_it_trains_with_labels_kept_and_reloads(write, tmp_path):
    data = ArrayDataModule(write(size=8), num_labels=10, val_size=10, batch_size=10)
    model = ImageClassifier(network="mlp", num_classes=5, image_size=8)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    trainer.checkpoint_callback.dirpath = str(tmp_path)
    trainer.fit(model, data)
    assert len(data.labeled_indices) == 10
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ArrayDataModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded.setup()
    assert loaded.test_indices.tolist() == data.test_indices.tolist()
    assert torch.equal(next(iter(loaded.train_dataloader()))[0], next(iter(data.train_dataloader()))[0])


OBJECTS = np.array([{}] * 60, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "kwargs", "message"),
    [
        ({"x_train": None}, {}, "has no array x_train; it has y_train, x_test, y_test."),
        ({"y_test": None}, {}, "has x_test but no y_test."),
        ({"x_train": np.zeros((60, 6, 6))}, {}, "x_train is float64 [60, 6, 6, 1]; it must be uint8"),
        ({"x_train": np.zeros((60, 6, 5), np.uint8)}, {}, "x_train is uint8 [60, 6, 5, 1]; it must be uint8"),
        ({"y_train": np.zeros(59, int)}, {}, "y_train is int64 [59]; it must be integer class ids"),
        ({"y_train": np.zeros(60)}, {}, "y_train is float64 [60]; it must be integer class ids"),
        ({"y_train": np.full(60, -1)}, {}, "it must be integer class ids from 0"),
        ({"y_train": OBJECTS}, {}, "holds objects"),
        (
            {"x_test": np.zeros((20, 7, 7), np.uint8)},
            {},
            "the images of x_test are [7, 7, 1], those of x_train [6, 6, 1]",
        ),
        ({}, {"test_size": 21}, "test_size is 21, but the part that the data give has 20 samples."),
        ({}, {"val_size": 56}, "val_size is 56; it must be at most 55"),
    ],
)
def test_files_that_do_not_fit(write, arrays, kwargs, message):
    with pytest.raises(InvalidValueError) as caught:
        ArrayDataModule(write(**arrays), **kwargs).setup()
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InvalidValueError, match=r"There is no file .*/nowhere\.npz; data\.path is 'nowhere\.npz'"):
        ArrayDataModule("nowhere.npz")
    (tmp_path / "a.npz").write_text("<html>")
    with pytest.raises(InvalidValueError, match=r"cannot be read as \.npz"):
        ArrayDataModule(str(tmp_path / "a.npz"))
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InvalidValueError, match="holds a single array"):
        ArrayDataModule(str(tmp_path / "b.npy"))


def test_statistics_may_be_given(write):
    """As for a network that was trained on others."""
    data = ArrayDataModule(write(), batch_size=5, augment="none", mean=[0.25], std=[0.5])
    data.setup()
    assert (data.normalize.mean, data.normalize.std) == ((0.25,), (0.5,))
    x, _ = next(iter(data.test_dataloader()))
    np.testing.assert_allclose(x[0, 0, 0, 0], (60 / 255 - 0.25) / 0.5, rtol=1e-6)
    with pytest.raises(InvalidValueError, match=r"mean is \[0.25\] and std is None; give both or none"):
        ArrayDataModule(write(), mean=[0.25])
    data = ArrayDataModule(write(), mean=[0.25] * 3, std=[0.5] * 3)  # how many channels there are is in the file
    with pytest.raises(InvalidValueError, match="it must have 1 number, one for each channel"):
        data.setup()


def test_images_without_a_label(write):
    """As in STL-10: -1 stands for none."""
    labels = np.where(np.arange(60) % 3 == 0, -1, np.arange(60) % 5)
    path = write(y_train=labels)
    data = ArrayDataModule(path, batch_size=5, unlabeled_batch_size=10, val_size=10)
    data.setup()
    assert (data.num_classes, len(data.labeled_indices), data.num_unlabeled) == (5, 30, 50)
    assert not (data.labels[np.concatenate([data.val_indices, data.test_indices])] < 0).any()
    part = next(iter(data.train_dataloader()))["unlabeled"]
    assert part["target"].tolist() == data.labels[data.train_indices[part["index"]]].tolist()
    alone = ArrayDataModule(write("alone.npz", y_train=labels, test=0), unlabeled_batch_size=10)
    alone.setup()
    assert len(alone.test_indices) == 40 // 6  # of the images with a label
    with pytest.raises(
        InvalidValueError, match=r"must be integer .* 60 images\. -1, for none, goes with unlabeled_batch"
    ):
        ArrayDataModule(path).setup()
    with pytest.raises(InvalidValueError, match=r"y_test is int64 \[20\]; it must be integer class ids from 0"):
        ArrayDataModule(write(y_test=np.full(20, -1)), unlabeled_batch_size=10).setup()
    with pytest.raises(InvalidValueError, match="y_train holds no label but -1"):
        ArrayDataModule(write(y_train=np.full(60, -1)), unlabeled_batch_size=10).setup()
