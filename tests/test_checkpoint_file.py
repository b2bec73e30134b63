import os
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning import L1Mixin
from lightning_tuning.checkpoint_file import checked, damage, load_checked, local_path, read_checkpoint
from lightning_tuning.errors import CheckpointError
from tests.helpers_checkpoints import Payload, flip, served, truncate


class Plain(LightningModule):
    """A layer."""

    def __init__(self, size: int = 3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(size, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()


class Net(L1Mixin, Plain):
    """And a technique."""


def content(size=3, hparams=None):
    state = Plain(size).state_dict()
    return {"state_dict": state, "hyper_parameters": hparams or {"size": size}, "pytorch-lightning_version": "2.6.6"}


@pytest.fixture
def path(tmp_path):
    torch.save(content(), tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_torch_itself_loads_a_changed_bit(path):
    whole = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
    flip(path, offset=3)
    changed = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
    assert not torch.equal(whole, changed)
    assert damage(path) == "its bytes have changed (record a/data/0)"


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "data/1", "version", "byteorder"])
def test_a_changed_bit_is_seen_in_every_record(record, path):
    assert damage(path) is None
    flip(path, record)
    assert damage(path) == f"its bytes have changed (record a/{record})"


@pytest.mark.slow
def test_a_changed_bit_anywhere_changes_nothing_or_is_seen(tmp_path):
    torch.save({"w": torch.arange(3.0)}, tmp_path / "a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    unseen = 0
    for position in range(len(whole)):
        for bit in range(8):
            file = tmp_path / f"{position}-{bit}.ckpt"
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            if damage(file) is None:
                unseen += 1
                assert torch.equal(torch.load(file, weights_only=True)["w"], torch.arange(3.0))
            file.unlink()
    assert 0 < unseen < 0.6 * 8 * len(whole)  # padding, dates


@pytest.mark.parametrize("byte", [26, 28, 29])
@pytest.mark.parametrize("bit", range(8))
def test_a_record_that_a_changed_length_moves_is_seen(byte, bit, path):
    with zipfile.ZipFile(path) as archive:
        (record,) = [record for record in archive.infolist() if record.filename == "a/data/0"]
    content = bytearray(path.read_bytes())
    content[record.header_offset + byte] ^= 1 << bit
    path.write_bytes(content)
    assert damage(path) == "its bytes have changed (record a/data/0)"


@pytest.mark.parametrize(
    ("place", "bit"),
    [(8, 0), (20, 3), (24, 3), (38, 4), (46, 0), (51, 0)],
    ids=["encrypted", "compressed size", "size", "folder", "archive's name", "record's name"],
)
def test_a_directory_that_changed_is_seen(place, bit, path):
    """torch loads whatever is in memory for a record that is marked as a folder, and says nothing."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"a/data/1"))
    content[entry + place] ^= 1 << bit
    path.write_bytes(content)
    assert str(damage(path)).startswith("its bytes have changed (")


def test_a_directory_that_leaves_records_out_is_seen(path):
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\x06\x06")
    content[end + 24 : end + 40] = [5, *[0] * 7, 5, *[0] * 7]
    path.write_bytes(content)
    assert str(damage(path)).startswith("its bytes have changed (")


@pytest.mark.parametrize("size", [1, 21, 22, 100, 900])
def test_truncated(size, path):
    truncate(path, size)
    assert damage(path) == "it is cut off"
    with pytest.raises(CheckpointError, match=r"a\.ckpt is no whole checkpoint: it is cut off\.$"):
        read_checkpoint(path)


def test_empty_foreign_missing(tmp_path):
    (tmp_path / "empty.ckpt").touch()
    assert damage(tmp_path / "empty.ckpt") == "it is empty"
    (tmp_path / "text.ckpt").write_text("<html>not found</html>")
    assert damage(tmp_path / "text.ckpt") == "it does not begin as torch.save's files do"
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    assert damage(tmp_path / "zip.ckpt") == "it is an archive, but none of torch.save's"
    assert damage(tmp_path / "none.ckpt") == "it cannot be read (No such file or directory)"
    with pytest.raises(CheckpointError, match=r"^There is no checkpoint .*none\.ckpt\.$"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    with pytest.raises(CheckpointError, match="is no checkpoint: it holds a Tensor and no dict"):
        read_checkpoint(tmp_path / "tensor.ckpt")


def test_a_compressed_archive_is_not_unpacked(path, tmp_path):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    assert damage(tmp_path / "b.ckpt") == "it is an archive, but none of torch.save's"


def test_files_without_checksums_are_no_damaged_ones(tmp_path):
    torch.save(content(), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.ckpt")["hyper_parameters"] == {"size": 3}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), tmp_path / "unchecked.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "unchecked.ckpt")["hyper_parameters"] == {"size": 3}


def test_a_file_is_read_again_when_it_changed(path):
    assert damage(path) is None
    flip(path)
    os.utime(path, (1e9, 1e9))
    assert damage(path) is not None


def test_a_sharded_checkpoint_is_whole_when_its_last_file_is(tmp_path):
    assert damage(tmp_path) == "it is a folder without meta.pt, which Lightning writes last"
    torch.save({}, tmp_path / "meta.pt")
    assert damage(tmp_path) is None
    truncate(tmp_path / "meta.pt", 30)
    assert damage(tmp_path) == "of its file meta.pt, it is cut off"
    (tmp_path / "deepspeed.ckpt" / "checkpoint").mkdir(parents=True)
    assert damage(tmp_path / "deepspeed.ckpt") is None


def test_a_file_of_an_old_torch_that_was_cut_off(tmp_path):
    torch.save(content(), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    truncate(tmp_path / "old.ckpt", 10)
    with pytest.raises(CheckpointError, match=r"old\.ckpt cannot be read: unexpected EOF"):
        read_checkpoint(tmp_path / "old.ckpt")


def test_local_paths():
    assert local_path("a.ckpt") == Path("a.ckpt").absolute()
    assert local_path("file:///tmp/a b.ckpt") == Path("/tmp/a b.ckpt")
    assert local_path("http://localhost/a.ckpt") is None
    assert local_path("memory://a.ckpt") is None


LOADS = {
    "read": read_checkpoint,
    "module with mixins": Net.load_from_checkpoint,
    "any module": lambda source: load_checked(Plain.load_from_checkpoint, source),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize("where", ["path", "file", "http"])
@pytest.mark.parametrize("place", ["beside", "hyper-parameter", "instead"])
def test_a_payload_never_runs(load, where, place, tmp_path):
    payload = Payload(tmp_path / "ran")
    evil = {
        "beside": {**content(), "extra": payload},
        "hyper-parameter": content(hparams={"size": payload}),
        "instead": payload,
    }[place]
    torch.save(evil, tmp_path / "evil.ckpt")
    with served(tmp_path) as server:
        sources = {
            "path": tmp_path / "evil.ckpt",
            "file": f"file://{tmp_path}/evil.ckpt",
            "http": f"{server}/evil.ckpt",
        }
        with pytest.raises(CheckpointError) as caught:
            load(sources[where])
    assert not (tmp_path / "ran").exists()
    assert str(caught.value).startswith(f"{sources[where]} was not loaded: it refers to posix.mkdir, and only data are")
    assert "\n" not in str(caught.value)


def test_the_payload_would_run(tmp_path):
    torch.save(Payload(tmp_path / "ran"), tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_code_is_never_taken_from_another_machine(tmp_path):
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with served(tmp_path) as server, pytest.raises(CheckpointError, match="code that comes from another machine"):
        read_checkpoint(f"{server}/evil.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_what_lightning_loads_from_an_address_by_default_runs(tmp_path, monkeypatch):
    """Why addresses need care: stock Lightning unpickles them with code."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(content(hparams={"size": 3, "x": Payload(tmp_path / "ran")}), tmp_path / "evil.ckpt")
    with served(tmp_path) as server:
        Plain.load_from_checkpoint(f"{server}/evil.ckpt")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [Net.load_from_checkpoint, lambda s: load_checked(Plain.load_from_checkpoint, s)])
def test_two_addresses_of_one_name_are_two_files(load, tmp_path):
    for name, size in (("first", 3), ("second", 4)):
        (tmp_path / name).mkdir()
        torch.save(content(size), tmp_path / name / "last.ckpt")
    with served(tmp_path) as server:
        assert load(f"{server}/first/last.ckpt").layer.in_features == 3
        assert load(f"{server}/second/last.ckpt").layer.in_features == 4
        with pytest.raises(CheckpointError, match=r"^http.*/third/last\.ckpt could not be fetched: "):
            load(f"{server}/third/last.ckpt")


def test_a_damaged_download(path):
    flip(path)
    with served(path.parent) as server, pytest.raises(CheckpointError, match=r"http.*a\.ckpt is no whole checkpoint"):
        read_checkpoint(f"{server}/a.ckpt")


def test_the_download_is_removed(path):
    with served(path.parent) as server, checked(f"{server}/a.ckpt") as copy:
        assert copy.is_file()
    assert not copy.exists()


def test_load_from_checkpoint(path):
    assert Net.load_from_checkpoint(path).layer.in_features == 3
    assert Net.load_from_checkpoint(str(path), "cpu", l1_weight=0.1).l1_weight == 0.1
    with path.open("rb") as file:
        assert Net.load_from_checkpoint(file).layer.in_features == 3
    flip(path)
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        Net.load_from_checkpoint(path)


def test_a_trusted_local_file_may_hold_objects(tmp_path):
    torch.save(content(hparams={"size": 3, "odd": Path("a")}), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"refers to pathlib\S*\.PosixPath, and only data"):
        Net.load_from_checkpoint(tmp_path / "a.ckpt")
    assert Net.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=False).layer.in_features == 3
    assert read_checkpoint(tmp_path / "a.ckpt", weights_only=False)["hyper_parameters"]["odd"] == Path("a")
