"""What images in files are normalised with: fitted, given or kept."""

import os

import numpy as np
import pytest

from lightning_tuning.data import ImageFiles, image_statistics
from lightning_tuning.errors import InvalidValueError

from .image_files import RGB, png
from .pictures import numbers_of, picture, write, write_folder
from .test_image_folder import folder, names


def moments(images):
    """Mean and deviation over all pixels, in float64."""
    pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images]).astype(np.float64) / 255
    return pixels.mean(0), pixels.std(0)


def test_normalisation_is_fitted_to_the_training_part(tmp_path):
    write_folder(tmp_path, {"train/a": [3, 60], "train/b": [130, 180], "val/a": [10, 90]})
    data = folder(tmp_path, test_size=0)
    mean, std = moments([picture(n) for n in (3, 60, 130, 180)])
    np.testing.assert_allclose(data.normalize.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(data.normalize.std, np.maximum(std, 1e-6), rtol=1e-9)
    x, _ = next(iter(data.val_dataloader()))
    expected = (np.array([10, 245, 40]) / 255 - mean) / np.maximum(std, 1e-6)
    np.testing.assert_allclose(x[0, :2, 0, 0], expected[:2], rtol=1e-5)


def test_normalisation_sees_images_as_evaluation_does(tmp_path):
    """What the crop leaves out does not count, and grey is grey."""
    frame = np.full((32, 16, 3), 255, np.uint8)
    frame[8:24] = 51
    for name in ("a/1.png", "b/1.png"):
        write(tmp_path / name, frame)
    data = folder(tmp_path, image_size=14, resize="crop", val_size=0, test_size=0)
    np.testing.assert_allclose(data.normalize.mean, [0.2] * 3)
    data = folder(tmp_path, image_size=8, resize="squash", in_channels=1, val_size=0, test_size=0)
    np.testing.assert_allclose(data.normalize.mean, [0.6])
    data = folder(tmp_path, image_size=8, resize="pad", val_size=0, test_size=0)
    np.testing.assert_allclose(data.normalize.mean, [0.3] * 3)  # half of the square is black


def test_given_statistics_are_used_and_no_image_is_read(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": [3, 60], "b": [130, 180]})
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "__getitem__", None)
        data = folder(tmp_path, mean=[0.5, 0.25, 0.125], std=[0.5, 0.25, 1.0], val_size=1, test_size=0)
    x, _ = next(iter(data.val_dataloader()))
    (number,) = numbers_of(data, x)
    expected = (np.array([number, 255 - number, 40]) / 255 - [0.5, 0.25, 0.125]) / [0.5, 0.25, 1]
    np.testing.assert_allclose(x[0, :, 3, 3], expected, rtol=1e-5)


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The files that are read; the statistics are kept in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    read, found = ImageFiles.__getitem__, []
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, n: found.append(self.paths[n]) or read(self, n))
    return found


def test_statistics_are_kept(tmp_path, reads):
    root = write_folder(tmp_path / "data", {"a": [3, 60], "b": [130, 180]})
    kwargs = {"val_size": 0, "test_size": 0}
    first = folder(root, **kwargs)
    assert len(reads) == 4
    (kept,) = (tmp_path / "kept" / "lightning-tuning" / "statistics").iterdir()
    again = folder(root, **kwargs)
    assert len(reads) == 4
    assert (again.normalize.mean, again.normalize.std) == (first.normalize.mean, first.normalize.std)
    # Another image, another part and another size are other statistics.
    write(root / "a" / "003.png", picture(33))
    changed = folder(root, **kwargs)
    np.testing.assert_allclose(changed.normalize.mean[0], np.mean([33, 60, 130, 180]) / 255)
    assert len(reads) == 8
    part = folder(root, val_size=1, test_size=0)
    trained = [int(key[2:5]) if key != "a/003.png" else 33 for key in names(part, "train")]
    np.testing.assert_allclose(part.normalize.mean[0], np.mean(trained) / 255)
    folder(root, **kwargs, in_channels=1)
    folder(root, **{**kwargs, "image_size": 4})
    folder(root, **{**kwargs, "resize": "pad"})
    assert len(reads) == 8 + 3 + 3 * 4
    # What is no such file is made anew.
    for content in ("{", "null", "[1]", '{"mean": [0.5]}'):
        kept.write_text(content)
    write(root / "a" / "003.png", picture(3))
    os.utime(root / "a" / "003.png", (0, 0))
    before = folder(root, **kwargs).normalize.mean
    for path in (tmp_path / "kept" / "lightning-tuning" / "statistics").iterdir():
        path.write_text("{")
    reads.clear()
    assert folder(root, **kwargs).normalize.mean == before
    assert len(reads) == 4


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = folder(write_folder(tmp_path / "data", {"a": [51], "b": [51]}), val_size=0, test_size=0)
    assert data.normalize.mean[0] == pytest.approx(0.2)


def test_statistics_of_many_images_are_of_some(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(image_statistics, "MOST", 5)
    root = write_folder(tmp_path / "data", {"a": range(10), "b": range(10, 20)})
    data = folder(root, val_size=0, test_size=0, split_seed=1)
    assert len({*reads}) == len(reads) == 5
    expected = np.mean([int(path[-7:-4]) for path in reads]) / 255
    np.testing.assert_allclose(data.normalize.mean[0], expected)
    chosen = sorted(reads)
    reads.clear()
    folder(root, val_size=0, test_size=0, split_seed=2)
    assert sorted(reads) != chosen


def test_statistics_without_bad_images(tmp_path):
    root = write_folder(tmp_path, {"a": [51, 52], "b": [51, 53]})
    for name in ("a/052.png", "b/053.png"):
        (root / name).write_bytes(png(RGB, 2)[:50])
    assert folder(root, val_size=0, test_size=0).normalize.mean[0] == pytest.approx(0.2)
    for name in ("a/051.png", "b/051.png"):
        (root / name).write_bytes(b"")
    with pytest.raises(InvalidValueError, match=r"\.png: it is (empty|truncated)\. Copy or download it again"):
        folder(root, val_size=0, test_size=0)
