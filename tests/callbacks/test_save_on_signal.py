"""SaveOnSignal: where it saves, what it ends with, and that the run goes on from there."""

from __future__ import annotations

import os
import signal
import stat
import threading

import fsspec
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torchmetrics import MeanMetric

from lightning_tuning import ExactResume, SaveOnSignal
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import SafeCheckpointIO
from tests.resume.users_own import Net, data


class SendsSignal(Callback):
    """Signals its own process at one place."""

    def __init__(self, hook="on_train_batch_start", epoch=0, batch_idx=1, signum=signal.SIGTERM):
        self.hook, self.epoch, self.batch_idx, self.signum = hook, epoch, batch_idx, signum
        self.steps = []

    def send(self, hook, trainer, batch_idx):
        self.steps.append((hook, trainer.current_epoch, batch_idx))
        if (hook, trainer.current_epoch, batch_idx) == (self.hook, self.epoch, self.batch_idx):
            signal.raise_signal(self.signum)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.send("on_train_batch_start", trainer, batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.send("on_validation_batch_start", trainer, batch_idx)


def fit(folder, *callbacks, module=None, ckpt_path=None, **kwargs):
    settings = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu", callbacks=[SaveOnSignal(), *callbacks], default_root_dir=folder, **{**settings, **kwargs}
    )
    trainer.fit(module or Net(), *data(), ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trainer


def stopped(folder, *callbacks, **kwargs):
    """The exit code, and the loops of the checkpoint that was saved."""
    with pytest.raises(SIGTERMException) as caught:
        fit(folder, *callbacks, **kwargs)
    path = folder / "checkpoints" / "last.ckpt"
    return caught.value.code, torch.load(path, weights_only=True) if path.exists() else None


@pytest.mark.parametrize(("window", "batch_idx", "batches", "steps"), [(1, 1, 2, 2), (3, 0, 3, 1), (3, 3, 4, 2)])
def test_it_saves_behind_the_whole_window(window, batch_idx, batches, steps, tmp_path):
    """Of 4 batches; the last one makes a window of its own."""
    sends = SendsSignal(batch_idx=batch_idx)
    code, checkpoint = stopped(tmp_path, sends, accumulate_grad_batches=window)
    assert code == 143
    assert checkpoint["global_step"] == steps
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == batches
    assert sends.steps[-1] == ("on_train_batch_start", 0, batches - 1)


def test_within_a_validation_it_stops_at_once_and_the_resumed_run_validates(tmp_path):
    class Logged(Callback):
        def __init__(self):
            self.seen = []

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.seen.append((trainer.current_epoch, trainer.callback_metrics["val/loss"].item()))

    whole, rest = Logged(), Logged()
    straight = fit(tmp_path / "a", ExactResume(), whole)
    sends = SendsSignal("on_validation_batch_start", epoch=1, batch_idx=1)
    code, checkpoint = stopped(tmp_path / "b", ExactResume(), sends)
    assert code == 143
    assert checkpoint["global_step"] == 8
    assert sends.steps[-1] == ("on_validation_batch_start", 1, 1)
    path = tmp_path / "b" / "checkpoints" / "last.ckpt"
    resumed = fit(tmp_path / "c", ExactResume(), rest, ckpt_path=path)
    assert rest.seen == whole.seen[1:]
    assert all(map(torch.equal, straight.model.state_dict().values(), resumed.model.state_dict().values()))
    assert straight.fit_loop.epoch_loop._batches_that_stepped == resumed.fit_loop.epoch_loop._batches_that_stepped


class Measuring(Net):
    """Has the mean of its validation in the checkpoint, also that of a validation under way."""

    def __init__(self):
        super().__init__()
        self.mean = MeanMetric()
        self.mean.persistent(True)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.mean(batch_idx + 1.0)
        self.log("val/mean", self.mean)


def test_what_a_stopped_validation_has_measured_is_not_counted_twice(tmp_path):
    straight = fit(tmp_path / "a", ExactResume(), module=Measuring(), max_epochs=2)
    sends = SendsSignal("on_validation_batch_start", epoch=1, batch_idx=0)
    _, checkpoint = stopped(tmp_path / "b", ExactResume(), sends, module=Measuring())
    assert checkpoint["state_dict"]["mean.weight"] == 1  # its first batch
    path = tmp_path / "b" / "checkpoints" / "last.ckpt"
    resumed = fit(tmp_path / "c", ExactResume(), module=Measuring(), ckpt_path=path, max_epochs=2)
    assert resumed.callback_metrics["val/mean"] == straight.callback_metrics["val/mean"] > 1


def test_validation_within_a_window_is_finished(tmp_path):
    sends = SendsSignal("on_validation_batch_start", batch_idx=0)
    _, checkpoint = stopped(tmp_path, sends, accumulate_grad_batches=3, val_check_interval=2)
    assert checkpoint["global_step"] == 1
    assert sends.steps[-1] == ("on_train_batch_start", 0, 2)


def test_the_handler_is_there_during_the_fit_alone_and_the_users_is_called(tmp_path):
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        users = signal.getsignal(signal.SIGTERM)
        code, _ = stopped(tmp_path, SendsSignal())
        assert code == 143
        assert calls == [1]
        assert signal.getsignal(signal.SIGTERM) is users
        fit(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is users
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_file_stands_beside_the_users_checkpoints(tmp_path):
    keep = ModelCheckpoint(tmp_path / "mine", every_n_epochs=9)
    stopped(tmp_path, SendsSignal(), keep)
    assert (tmp_path / "mine" / "last.ckpt").is_file()


def test_saving_says_nothing_of_lightnings_defaults(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.checkpoint_connector.log.info", said.append)
    stopped(tmp_path, SendsSignal())
    assert said == []


def test_the_trainer_still_makes_its_own_checkpoint_callback(tmp_path):
    trainer = fit(tmp_path, max_epochs=1)
    assert sum(isinstance(callback, ModelCheckpoint) for callback in trainer.callbacks) == 1
    assert isinstance(trainer.callbacks[-1], SaveOnSignal)
    fit(tmp_path, max_epochs=1, enable_checkpointing=False)


def test_fast_dev_run_leaves_nothing(tmp_path):
    code, checkpoint = stopped(tmp_path, SendsSignal(batch_idx=0), fast_dev_run=True)
    assert (code, checkpoint) == (143, None)


def test_in_a_thread_no_handler_is_set(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=fit, args=(tmp_path,), kwargs={"max_epochs": 1})
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.rglob("*.ckpt"))


def test_slurm_requeues_behind_the_whole_window(tmp_path, monkeypatch):
    """``scontrol`` is a script that notes its arguments."""
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    sends = SendsSignal(batch_idx=0, epoch=1, signum=signal.SIGUSR1)
    environment = SLURMEnvironment(auto_requeue=True)
    run = tmp_path / "run"
    trainer = fit(run, ExactResume(), sends, plugins=[environment], accumulate_grad_batches=3)
    assert (tmp_path / "calls").read_text() == "requeue 77\n"
    assert trainer.current_epoch == 3  # until SLURM ends it
    saved = [torch.load(path, weights_only=True) for path in (run / "hpc_ckpt_1.ckpt", *run.glob("**/last.ckpt"))]
    assert [checkpoint["global_step"] for checkpoint in saved] == [3, 3]
    assert saved[0]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 3
    # The requeued job: Lightning finds the checkpoint by itself.
    again = fit(run, ExactResume(), plugins=[environment], accumulate_grad_batches=3)
    assert again.ckpt_path == str(run / "hpc_ckpt_1.ckpt")
    assert all(map(torch.equal, trainer.model.state_dict().values(), again.model.state_dict().values()))


@pytest.mark.parametrize("filename", ["", "a/b"])
def test_bad_filename(filename):
    with pytest.raises(InvalidValueError, match="it must be the name of one file"):
        SaveOnSignal(filename)


def test_a_remote_folder(tmp_path):
    keep = ModelCheckpoint("memory://bucket/mine", every_n_epochs=9)
    saves = SaveOnSignal("stopped")
    with pytest.raises(SIGTERMException):
        fit(tmp_path, saves, SendsSignal(), keep)
    assert saves.saved == "memory://bucket/mine/stopped.ckpt"
    assert fsspec.filesystem("memory").exists("/bucket/mine/stopped.ckpt")
    assert not list(tmp_path.rglob("*stopped*"))


@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_what_was_not_written_is_not_said_to_be_there(hook, tmp_path, told):
    (tmp_path / "checkpoints").touch()
    trainers = []

    class Keeps(Callback):
        def setup(self, trainer, pl_module, stage):
            trainers.append(trainer)

    code, checkpoint = stopped(tmp_path, SendsSignal(hook), Keeps(), plugins=[SafeCheckpointIO()])
    assert (code, checkpoint) == (143, None)
    assert [c.saved for c in trainers[0].callbacks if isinstance(c, SaveOnSignal)] == [None]
    assert "and no checkpoint was written." in told.text
    assert "A signal came: saved" not in told.text


@pytest.mark.parametrize("settings", [{}, {"num_sanity_val_steps": 0}], ids=["sanity check", "none"])
def test_a_signal_that_comes_before_the_first_batch(settings, tmp_path):
    """Other callbacks are called before this one, and so is whatever else the start of a fit takes its time with."""

    class Early(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            signal.raise_signal(signal.SIGTERM)

        def on_train_start(self, trainer, pl_module):
            if trainer.num_sanity_val_steps == 0:
                signal.raise_signal(signal.SIGTERM)

    code, checkpoint = stopped(tmp_path, Early(), accumulate_grad_batches=2, **settings)
    assert code == 143
    assert checkpoint["global_step"] == 1
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2


def test_a_second_signal_changes_nothing(tmp_path):
    code, checkpoint = stopped(tmp_path, SendsSignal(), SendsSignal())
    assert code == 143
    assert checkpoint["global_step"] == 2
