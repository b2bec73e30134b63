import errno
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_tuning.errors import CheckpointError
from lightning_tuning.runs import SafeCheckpointIO
from lightning_tuning.runs.checkpoints import RunCheckpoint
from lightning_tuning.whole_file import whole_file, write_whole
from tests.helpers_checkpoints import flip

BIG = 50_000
"""Bytes that a checkpoint of this file exceeds and all else that a run writes does not."""


@pytest.fixture
def full_disk():
    """A function that makes the system refuse files beyond ``BIG`` (True) or write them again (False)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse(full):
        resource.setrlimit(resource.RLIMIT_FSIZE, (BIG if full else before[0], before[1]))

    yield refuse
    refuse(False)


def content(value=0.0):
    return {"w": torch.full((BIG,), value)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def value(path):
    return torch.load(path, weights_only=True)["w"][0].item()


def test_a_checkpoint_goes_round(tmp_path):
    io = SafeCheckpointIO()
    io.save_checkpoint(content(3.0), tmp_path / "new" / "a.ckpt")
    assert names(tmp_path / "new") == ["a.ckpt"]
    assert torch.equal(io.load_checkpoint(tmp_path / "new" / "a.ckpt")["w"], content(3.0)["w"])
    io.remove_checkpoint(tmp_path / "new" / "a.ckpt")
    assert names(tmp_path / "new") == []
    with pytest.raises(TypeError, match="storage_options"):
        io.save_checkpoint(content(), tmp_path / "a.ckpt", storage_options={})


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The order that makes it safe: all bytes, fsync of the file, rename, fsync of the folder."""
    (tmp_path / "a.ckpt").write_text("old")
    calls = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if target.is_file():
            torch.load(target, weights_only=True)  # whole at this time
        calls.append(("sync", target.name))
        sync(descriptor)

    def rename(old, new):
        calls.append(("rename", Path(old).name, Path(new).name, Path(new).read_text()))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_whole(content(), tmp_path / "a.ckpt")
    temporary = calls[0][1]
    assert re.fullmatch(r"\.a\.ckpt\.[0-9a-f]{8}\.tmp", temporary)
    assert calls == [("sync", temporary), ("rename", temporary, "a.ckpt", "old"), ("sync", tmp_path.name)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync(number, tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(number, "not offered")

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(content(2.0), tmp_path / "a.ckpt")
    assert value(tmp_path / "a.ckpt") == 2.0


@pytest.mark.filterwarnings("always:The checkpoint .* was not written")
def test_a_full_disk_keeps_the_old_checkpoint_and_warns_once(full_disk, tmp_path, recwarn):
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(content(1.0), path)
    full_disk(True)
    io.save_checkpoint(content(2.0), path)
    io.save_checkpoint(content(3.0), path)
    (warning,) = recwarn
    text = str(warning.message)
    assert text.startswith(f"The checkpoint {path} was not written: File too large. It needs 0.2 MB, and ")
    assert text.endswith(" MB are free there. Training goes on, and earlier checkpoints stay.")
    assert io.failed == str(path)
    assert names(tmp_path) == ["last.ckpt"]
    assert value(path) == 1.0
    full_disk(False)
    io.save_checkpoint(content(4.0), path)
    assert io.failed is None
    assert value(path) == 4.0
    full_disk(True)
    with pytest.warns(UserWarning, match="was not written"):
        io.save_checkpoint(content(5.0), path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_errors_that_come_with_fsync(number, tmp_path, monkeypatch):
    write_whole(content(1.0), tmp_path / "a.ckpt")

    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(UserWarning, match=f"was not written: {os.strerror(number)}"):
        SafeCheckpointIO().save_checkpoint(content(2.0), tmp_path / "a.ckpt")
    assert names(tmp_path) == ["a.ckpt"]
    assert value(tmp_path / "a.ckpt") == 1.0


def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"was not written: (Not a directory|File exists)\. Training goes on"):
        SafeCheckpointIO().save_checkpoint(content(), tmp_path / "file" / "a.ckpt")


def test_what_cannot_be_pickled_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        SafeCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "a.ckpt")
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
def test_the_old_one_goes_only_when_the_new_one_is_whole(full_disk, tmp_path):
    """As ModelCheckpoint calls: save the new one, remove the one that it replaces."""
    io = SafeCheckpointIO()
    paths = [tmp_path / f"{epoch}.ckpt" for epoch in range(4)]
    io.save_checkpoint(content(), paths[0])
    full_disk(True)
    for old, new in ((0, 1), (1, 2)):
        io.save_checkpoint(content(), paths[new])
        io.remove_checkpoint(paths[old])
        assert names(tmp_path) == ["0.ckpt"]
    full_disk(False)
    io.save_checkpoint(content(), paths[3])
    assert names(tmp_path) == ["0.ckpt", "3.ckpt"]
    io.remove_checkpoint(paths[2])
    assert names(tmp_path) == ["3.ckpt"]


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
def test_what_stands_in_is_looked_at_too(full_disk, tmp_path):
    """A path from a foreign checkpoint's state, removed when there is room again."""
    io, victim = SafeCheckpointIO(), tmp_path / "home" / "own.ckpt"
    victim.parent.mkdir()
    torch.save({}, victim)
    full_disk(True)
    io.save_checkpoint(content(), tmp_path / "kept" / "a.ckpt")
    io.remove_checkpoint(f"{tmp_path}/kept/../home/own.ckpt")
    full_disk(False)
    with pytest.warns(UserWarning, match=r"home/own\.ckpt was not removed: it is no checkpoint that this run can"):
        io.save_checkpoint(content(), tmp_path / "kept" / "a.ckpt")
    assert victim.is_file()


def test_one_callback_does_not_remove_what_another_keeps(full_disk, tmp_path):
    io, best, last = SafeCheckpointIO(), tmp_path / "best1.ckpt", tmp_path / "last.ckpt"
    io.save_checkpoint(content(), best)
    full_disk(True)
    with pytest.warns(UserWarning, match="was not written"):
        io.save_checkpoint(content(), tmp_path / "best2.ckpt")
    io.remove_checkpoint(best)
    full_disk(False)
    io.save_checkpoint(content(), last)
    assert names(tmp_path) == ["best1.ckpt", "last.ckpt"]
    io.save_checkpoint(content(), tmp_path / "best2.ckpt")  # now it is written, and nothing stands in for it any more
    assert names(tmp_path) == ["best2.ckpt", "last.ckpt"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".a.ckpt.999999.tmp").touch()
    (tmp_path / ".b.ckpt.999999.tmp").touch()
    write_whole(content(), tmp_path / "a.ckpt")
    assert names(tmp_path) == [".b.ckpt.999999.tmp", "a.ckpt"]


KILLED = """
import os, sys, torch
from pathlib import Path
from lightning_tuning.runs.checkpoint_io import write_whole
folder = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10**6):
    write_whole({"w": torch.full((400_000,), float(number))}, folder / "a.ckpt")
"""


@pytest.mark.slow
def test_killed_at_any_time_there_is_a_whole_one(tmp_path):
    io = SafeCheckpointIO()
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not (tmp_path / "a.ckpt").exists():
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        weights = io.load_checkpoint(tmp_path / "a.ckpt")["w"]
        assert (weights == weights[0]).all()


def test_remote_paths_are_written_in_lightnings_way(tmp_path, told):
    io = SafeCheckpointIO()
    io.save_checkpoint(content(3.0), "memory://folder/a.ckpt")
    io.save_checkpoint(content(4.0), "memory://folder/a.ckpt")
    assert told.text.count("memory://folder/a.ckpt is remote: it is written in Lightning's way") == 1
    assert io.load_checkpoint("memory://folder/a.ckpt")["w"][0] == 4.0
    io.remove_checkpoint("memory://folder/a.ckpt")
    assert not fsspec.filesystem("memory").exists("/folder/a.ckpt")


def test_a_file_address_is_local(tmp_path):
    io = SafeCheckpointIO()
    io.save_checkpoint(content(3.0), f"file://{tmp_path}/a.ckpt")
    assert value(tmp_path / "a.ckpt") == 3.0
    flip(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        io.load_checkpoint(tmp_path / "a.ckpt")


class Net(LightningModule):
    """Reports the given scores, one for each epoch; its first weight counts the steps."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.w = nn.Parameter(torch.zeros(BIG))

    def training_step(self, batch, batch_idx):
        return -self.w.sum()

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.current_epoch], sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Fills(Callback):
    """The disk is full from the end of the training of one epoch to that of another."""

    def __init__(self, full_disk, first, last):
        self.full_disk, self.first, self.last = full_disk, first, last

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch in (self.first, self.last):
            self.full_disk(trainer.current_epoch == self.first)


def fit(folder, scores, *callbacks, **settings):
    trainer = Trainer(
        max_epochs=len(scores),
        logger=False,
        callbacks=list(callbacks),
        plugins=[SafeCheckpointIO()],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        **settings,
    )
    data = DataLoader(range(2))
    trainer.fit(Net(scores), data, data)
    return trainer


def step(path):
    return torch.load(path, weights_only=True)["state_dict"]["w"][0].item()


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
def test_model_checkpoint_on_a_full_disk(full_disk, tmp_path):
    """Epochs 1 and 2 cannot be written; the names change, so Lightning wants epoch 0's removed."""
    keep = ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max")
    seen = []

    class Looks(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(names(tmp_path))

    fit(tmp_path, [0.1, 0.2, 0.3, 0.4], Looks(), keep, Fills(full_disk, 1, 3))
    assert seen == [[], ["epoch=0.ckpt"], ["epoch=0.ckpt"], ["epoch=0.ckpt"]]
    assert names(tmp_path) == ["epoch=3.ckpt"]
    assert step(tmp_path / "epoch=3.ckpt") == 8


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
@pytest.mark.parametrize(("last", "score", "written"), [(0.5, 0.5, 6), (0.05, 0.1, 2)])
def test_the_best_one_is_the_best_that_was_written(last, score, written, full_disk, tmp_path):
    """0.9 could not be written, so the 0.5 of the epoch after it is the best there is."""
    best = RunCheckpoint("best", "score", "max")
    best.dirpath = str(tmp_path)
    fit(tmp_path, [0.1, 0.9, last], best, Fills(full_disk, 1, 2))
    assert best.best_model_score.item() == pytest.approx(score)
    assert step(best.best_model_path) == written


class Rank0IsFull(Callback):
    """The first process cannot write in epoch 1; no rank may wait for ever, and all agree on what is best."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            limit = BIG if trainer.current_epoch == 1 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def on_fit_end(self, trainer, pl_module):
        (keep,) = trainer.checkpoint_callbacks
        found = {"score": float(keep.best_model_score), "w": pl_module.w.detach()[:1].clone()}
        torch.save(found, self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
def test_two_ranks_on_a_full_disk(tmp_path):
    best = RunCheckpoint("best", "score", "max")
    best.dirpath = str(tmp_path / "checkpoints")
    fit(tmp_path, [0.1, 0.9, 0.5], best, Rank0IsFull(tmp_path), strategy="ddp_fork", devices=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [rank["score"] for rank in ranks] == [pytest.approx(0.5)] * 2
    assert names(tmp_path / "checkpoints") == ["best.ckpt"]
    assert step(tmp_path / "checkpoints" / "best.ckpt") == ranks[1]["w"].item() == 3


def test_two_processes_write_the_same_file(tmp_path):
    """The one that ends first leaves the other's file alone; the one that ends last wins."""
    path = tmp_path / "a.ckpt"
    with whole_file(path) as file:
        torch.save(content(1.0), file)
        other = multiprocessing.get_context("fork").Process(target=write_whole, args=(content(2.0), path))
        other.start()
        other.join()
        assert value(path) == 2.0
    assert value(path) == 1.0
    assert names(tmp_path) == ["a.ckpt"]


def test_a_full_disk_that_takes_no_folder(tmp_path, monkeypatch):
    def mkdir(self, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.warns(UserWarning, match=r"not written: No space left on device\. It needs 0\.2 MB, and .* are free"):
        SafeCheckpointIO().save_checkpoint(content(), tmp_path / "new" / "deep" / "a.ckpt")


def test_an_error_that_was_under_way_is_not_the_disks(tmp_path):
    """``ModelCheckpoint(save_on_exception=True)`` saves while another error is handled."""
    try:
        raise FileNotFoundError("image.png")
    except FileNotFoundError:
        with pytest.raises(Exception, match="pickle"):
            SafeCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "a.ckpt")
