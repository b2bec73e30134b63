"""Datamodules whose decoded images are kept."""

import cv2
import numpy as np
import pytest

from lightning_tuning.data import ImageFiles, ImageFolderDataModule, ImageTableDataModule
from lightning_tuning.errors import InvalidValueError

SETTINGS = {"image_size": 8, "batch_size": 4, "num_workers": 0, "val_size": 4, "test_size": 4, "seed": 1}


@pytest.fixture(autouse=True)
def _statistics_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 256, (10 + number % 3, 12, 3), np.uint8))
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """The indices that are decoded."""
    read, seen = ImageFiles.__getitem__, []

    def note(self, index):
        seen.append(index)
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "__getitem__", note)
    return seen


@pytest.mark.parametrize("where", ["RAM", "Ram"])
def test_ram_in_capitals_is_no_folder(folder, where):
    with pytest.raises(InvalidValueError, match=rf"cache is '{where}'; write 'ram', or './{where}' for a folder of th"):
        ImageFolderDataModule(str(folder), cache=where, **SETTINGS)


def hashes(loader, digest):
    seen = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        seen += [digest(batch) for batch in loader]
    return seen


@pytest.mark.parametrize("where", ["ram", "folder"])
def test_each_image_is_decoded_once(folder, tmp_path, digest, decoded, where):
    plain = ImageFolderDataModule(str(folder), **SETTINGS)
    plain.setup()
    expected = hashes(plain.train_dataloader(), digest)
    decoded.clear()
    data = ImageFolderDataModule(str(folder), cache=where if where == "ram" else str(tmp_path / "cache"), **SETTINGS)
    data.setup("fit")
    assert hashes(data.train_dataloader(), digest) == expected
    assert sorted(decoded) == data.train_indices.tolist()
    data.setup("test")  # which finds what is kept
    assert hashes(data.train_dataloader(), digest) == expected
    assert len(decoded) == len(data.train_indices)
    again = ImageFolderDataModule(str(folder), cache=data.cache, **SETTINGS)
    again.setup()
    assert hashes(again.train_dataloader(), digest) == expected
    assert len(decoded) == (2 if where == "ram" else 1) * len(data.train_indices)


def test_masks_beside_kept_images(folder, tmp_path, digest, decoded):
    rows = ["image,mask"]
    for path in sorted(folder.rglob("*.png")):
        mask = path.with_suffix(".mask.png")
        cv2.imwrite(str(mask), cv2.imread(str(path))[..., 0] % 3)
        rows.append(f"{path.relative_to(folder)},{mask.relative_to(folder)}")
    (folder / "table.csv").write_text("\n".join(rows))

    def make(**kwargs):
        table = {"mask": "mask", "classes": ["a", "b", "c"], **SETTINGS, **kwargs}
        data = ImageTableDataModule(str(folder / "table.csv"), **table)
        data.setup()
        return data

    expected = hashes(make().train_dataloader(), digest)
    decoded.clear()
    data = make(cache="ram")
    assert hashes(data.train_dataloader(), digest) == expected
    assert sorted(decoded) == data.train_indices.tolist()


def test_changed_files_are_decoded_anew(folder, tmp_path, digest):
    data = ImageFolderDataModule(str(folder), cache="ram", **SETTINGS)
    data.setup()
    before = data.samples[0].copy()
    cv2.imwrite(data.samples.source.paths[0], 255 - cv2.imread(data.samples.source.paths[0]))
    data.setup()
    assert np.array_equal(data.samples[0], 255 - before)
