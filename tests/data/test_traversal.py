"""Archives and manifests that name places outside of them: nothing is read there, and nothing is written."""

from __future__ import annotations

import os
import tarfile
import zipfile

import pytest
import torch

from lightning_tuning.checkpoint_file import read_checkpoint
from lightning_tuning.data import WebDatasetDataModule
from lightning_tuning.data.split_manifest import Split, load_split, save_split
from lightning_tuning.errors import CheckpointError, InvalidValueError

from .image_files import RGB, png
from .tars import member, tar_bytes

PNG = png(RGB, 2)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A secret beside the working folder; afterwards nothing may have changed there."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    before = secret.stat()
    yield secret
    assert sorted(os.listdir(tmp_path)) == ["a", "secret.png"]
    assert os.listdir(tmp_path / "a") == ["b"]
    assert secret.stat() == before


def evil_names(secret):
    return ["../../evil", str(secret.parent / "evil"), "x/../../../evil"]


def test_members_of_a_tar_file_are_read_where_they_stand_and_unpacked_nowhere(outside):
    names = evil_names(outside)
    samples = [(f"{name}{ending}", data) for name in names for ending, data in ((".png", PNG), (".cls", b"1"))]
    with open("shard.tar", "wb") as file:
        file.write(tar_bytes(samples))
    data = WebDatasetDataModule("shard.tar", image_size=8, batch_size=1, val_size=0, test_size=0)
    data.prepare_data()
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3
    assert len(data.images) == len(names)
    save_split("split.csv", data.keys, Split(range(3), [], [], range(3)))
    assert sorted(os.listdir()) == ["shard.tar", "split.csv"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_link_in_a_tar_file_is_no_image(kind, outside):
    link, _ = member("1.png", b"", kind)
    link.linkname = str(outside)
    with open("shard.tar", "wb") as file:
        file.write(tar_bytes([(link, b""), ("1.cls", b"1"), ("2.png", PNG), ("2.cls", b"1")]))
    with pytest.raises(InvalidValueError, match=r"shard\.tar.*1"):
        WebDatasetDataModule("shard.tar", image_size=8, val_size=0, test_size=0).setup("fit")


def test_a_split_names_samples_of_the_data_alone(outside):
    names = evil_names(outside)
    save_split("split.csv", names, Split([0], [1], [2], [0]))
    with pytest.raises(
        InvalidValueError, match=r"split of other data: 3 samples \('\.\./\.\./evil', .* missing in the data"
    ):
        load_split("split.csv", ["1.png", "2.png"])
    assert os.listdir() == ["split.csv"]


def test_records_of_a_checkpoint_are_written_nowhere(outside):
    torch.save({"weight": torch.ones(3)}, "good.ckpt")
    with zipfile.ZipFile("good.ckpt") as good, zipfile.ZipFile("evil.ckpt", "w") as evil:
        for record in good.infolist():
            evil.writestr(record, good.read(record))
        for name in evil_names(outside):
            evil.writestr(name, b"evil")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt is no whole checkpoint"):
        read_checkpoint("evil.ckpt")
    assert sorted(os.listdir()) == ["evil.ckpt", "good.ckpt"]
