"""W&B may fail in any way; the training, its journal and the other loggers go on."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import JournalLogger, ResilientWandbLogger, read_journal
from lightning_tuning.runs.facts import run_facts
from lightning_tuning.runs.wandb_guard import NoRun
from tests.helpers_wandb import aliases, artifacts, config_and_history, exit_code, run_id, service_pid

STEPS = 6


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class At(pl.Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            self.action(trainer)


def fit(folder, logger, *callbacks, steps=STEPS, ckpt_path=None):
    """Train with a journal and the logger; the journal's lines, and what W&B was warned of."""
    torch.manual_seed(0)
    net, data = Net(), DataLoader(TensorDataset(torch.randn(STEPS * 2, 2)), batch_size=2)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=[JournalLogger(folder), *([logger] if logger else [])],
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(net, data, ckpt_path=ckpt_path)
    told = [str(w.message) for w in caught if "Weights & Biases" in str(w.message)]
    return trainer, list(read_journal(folder / "metrics.jsonl")), told


def logged(path):
    """The values of ``loss`` by step in a W&B run's file."""
    rows = config_and_history(path)[1]
    return {row["trainer/global_step"]: row["loss"] for row in rows if "loss" in row}


def run_file(folder):
    wandb.teardown()
    (path,) = folder.rglob("*.wandb")
    return path


@pytest.fixture
def online(offline, monkeypatch):
    """A machine that is not told to stay offline, and knows no key."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(offline))
    monkeypatch.setenv("NETRC", str(offline / "no_netrc"))
    return offline


@pytest.fixture
def journal(tmp_path_factory):
    """The lines of a run without W&B."""
    return fit(tmp_path_factory.mktemp("plain"), None)[1]


def test_without_a_key_the_run_is_kept_offline_and_nobody_is_asked(online, journal, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked at the terminal"))
    monkeypatch.setattr("wandb.sdk.lib.wbauth.authenticate.prompt.prompt_and_save_api_key", pytest.fail)
    logger = ResilientWandbLogger(project="tests", save_dir=online)
    _, lines, told = fit(online / "run", logger)
    path = Path(logger.experiment.sync_dir)
    assert told == [
        "Weights & Biases: there is no API key, so this run is kept on this machine. Upload it later with "
        f"`wandb login` and `wandb sync {path}`."
    ]
    assert lines == journal
    file = run_file(online)
    assert file.parent == path
    assert logged(file) == {line["step"]: line["loss"] for line in journal}
    assert run_id(file) == logger.version == logger.record.id


def test_without_a_network_the_run_is_kept_offline_within_the_timeout(online, journal, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    logger = ResilientWandbLogger(project="tests", save_dir=online, timeout=1.0)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"could not be reached \(.*connection refused.* with `wandb sync [^`]+`"):
        assert logger.experiment.offline
    assert time.monotonic() - began < 60  # the rest is two starts on a busy machine; W&B itself waits for 90
    _, lines, told = fit(online / "run", logger)
    assert told == []  # said already
    assert lines == journal
    wandb.teardown()
    (file,) = online.rglob("offline-run-*/*.wandb")
    assert logged(file) == {line["step"]: line["loss"] for line in journal}


def test_the_warning_says_why_it_cannot_be_reached(online, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    init = wandb.init

    def refuse(mode=None, settings=None, **kwargs):
        if mode == "offline":
            return init(mode=mode, settings=settings, **kwargs)
        assert settings["init_timeout"] == settings["finish_timeout"] == 7.0
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr(wandb, "init", refuse)
    logger = ResilientWandbLogger(save_dir=online, timeout=7.0)
    with pytest.warns(UserWarning, match=r"could not be reached \(no route to host\).* with `wandb sync [^`]+`"):
        assert logger.experiment.offline


def test_where_no_run_can_be_started_nothing_is_logged_and_all_goes_on(offline, journal, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(wandb, "init", fail)
    logger = ResilientWandbLogger(save_dir=offline)

    def use(trainer):
        logger.experiment.config["a"] = 1
        logger.experiment.summary.update({"a": 1})
        logger.experiment.name = "b"
        logger.log_table("table", ["a"], [[1]])

    _, lines, told = fit(offline / "run", logger, At(2, use))
    assert isinstance(logger.experiment, NoRun)
    assert len(told) == 1
    assert told[0].startswith("Weights & Biases cannot start: RuntimeError('broken'). The training goes on")
    assert lines == journal


def test_a_killed_service_costs_what_follows_at_wandb_and_nothing_else(offline, journal):
    logger = ResilientWandbLogger(save_dir=offline, offline=True)

    def kill(trainer):
        logger.watch(trainer.model, log_freq=1)  # its hooks log within the backward pass
        time.sleep(1.0)  # W&B hands on what it has ten times a second
        os.kill(service_pid(), signal.SIGKILL)
        time.sleep(0.3)

    def use(trainer):
        run = logger.experiment
        run.log({"a": 1})
        run.config.update({"a": 1})
        run.summary["a"] = 1
        run.log_artifact(wandb.Artifact("a", "b"))
        logger.log_image("image", [torch.zeros(3, 2, 2)])
        logger.log_hyperparams({"b": 2})

    trainer, lines, told = fit(offline / "run", logger, At(3, kill), At(5, use))
    assert lines == journal
    assert trainer.global_step == STEPS
    assert len(told) == 1
    assert told[0].startswith("Weights & Biases ended at step 1 (Connection")
    assert told[0].endswith(f"`wandb sync {logger.experiment.sync_dir}`.")
    assert logger.record.step == 1
    (left,) = offline.rglob("offline-run-*/*.wandb")
    assert logged(left) == {line["step"]: line["loss"] for line in journal[:2]}  # as after a kill of both processes

    again = ResilientWandbLogger(save_dir=offline / "again", offline=True)
    assert fit(offline / "run2", again)[2] == []
    assert logged(run_file(offline / "again")) == {line["step"]: line["loss"] for line in journal}


def test_a_value_that_is_refused_is_left_out_and_said_once(offline, journal):
    logger = ResilientWandbLogger(save_dir=offline, offline=True)

    def refused(trainer):
        logger.log_metrics({"b": 1.0, 3: 2.0}, step=trainer.global_step)
        logger.log_image("image", ["no such file.png"])

    _, lines, told = fit(offline / "run", logger, At(2, refused), At(4, refused))
    assert lines == journal
    assert [text.split(":")[0] for text in told] == [
        "Weights & Biases refused `log`",
        "Weights & Biases refused `log_image`",
    ]
    assert logged(run_file(offline)) == {line["step"]: line["loss"] for line in journal}


PROCESS = """
import os, signal, sys, time, warnings
from lightning_tuning import ResilientWandbLogger
from tests.helpers_wandb import service_pid
logger = ResilientWandbLogger(save_dir=sys.argv[1], offline=True)
logger.log_metrics({"a": 1.0}, step=0)
os.kill(service_pid(), signal.SIGKILL)
time.sleep(0.3)
print("end")
"""


@pytest.mark.slow
def test_a_process_whose_service_was_killed_ends_in_peace(offline):
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(offline)], capture_output=True, text=True, timeout=120, cwd=Path.cwd()
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert done.stderr.count("Weights & Biases ended at step 0") == 1
    assert "Traceback" not in done.stderr


def test_each_logger_has_a_run_of_its_own_unless_told(offline):
    first = ResilientWandbLogger(save_dir=offline, offline=True)
    second = ResilientWandbLogger(save_dir=offline, offline=True)
    assert first.experiment is wandb.run
    told = ResilientWandbLogger(experiment=wandb.run)
    assert len({first.version, second.version, second.experiment.id}) == 2
    assert told.experiment is first.experiment
    assert told.version == first.version
    assert told.record.files == first.record.files
    for step, logger in enumerate((first, second, told)):
        logger.log_metrics({"loss": float(step)}, step=step)
    wandb.teardown()
    values = {run_id(path): logged(path) for path in offline.rglob("*.wandb")}
    assert values == {first.version: {0: 0.0, 2: 2.0}, second.version: {1: 1.0}}


def test_finish_ends_the_run_and_a_later_value_starts_it_again(offline):
    logger = ResilientWandbLogger(save_dir=offline, offline=True)
    run = logger.experiment
    logger.finish()
    assert wandb.run is None
    logger.log_metrics({"loss": 1.0}, step=0)
    assert logger.experiment is not run
    assert logger.experiment.id == run.id == logger.version


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_training_that_an_error_ended_has_failed_at_wandb_too(error, offline):
    def end(trainer):
        raise error

    logger = ResilientWandbLogger(save_dir=offline / "a", offline=True)
    with pytest.raises((ZeroDivisionError, SystemExit)):
        fit(offline / "run", logger, At(2, end))
    logger.finish()
    assert exit_code(run_file(offline / "a")) == 1
    mended = ResilientWandbLogger(save_dir=offline / "b", offline=True)
    with pytest.raises((ZeroDivisionError, SystemExit)):
        fit(offline / "run2", mended, At(2, end))
    fit(offline / "run3", mended)
    mended.finish()
    assert exit_code(run_file(offline / "b")) == 0


def test_best_is_what_a_metric_chose(online):
    monitored = ModelCheckpoint(online / "c", "best", monitor="loss", every_n_train_steps=2)
    last = ModelCheckpoint(online / "c", "last", every_n_train_steps=3)
    logger = ResilientWandbLogger(save_dir=online, log_model=True)
    fit(online / "run", logger, monitored, last)
    logger.finish()
    assert aliases(run_file(online)) == [("best.ckpt", ["best", "latest"]), ("last.ckpt", ["latest"])]


def test_a_resumed_training_continues_its_run_and_repeats_no_value(offline, journal):
    straight = {line["step"]: line["loss"] for line in journal}
    first = ResilientWandbLogger(save_dir=offline / "a", offline=True, project="digits")
    checkpoint = offline / "step3.ckpt"
    # Two more steps are logged than the checkpoint knows of.
    fit(offline / "a", first, At(3, lambda trainer: trainer.save_checkpoint(checkpoint)), steps=5)
    assert torch.load(checkpoint, weights_only=True)["wandb_run"]["step"] == 1  # its own row comes after it

    second = ResilientWandbLogger(save_dir=offline / "b", offline=True, ckpt_path=checkpoint)
    assert (second.version, second.name, second.record.step) == (first.version, "digits", 4)
    _, resumed, _ = fit(offline / "b", second, ckpt_path=checkpoint)
    assert [line["step"] for line in resumed] == [3, 4, 5]
    wandb.teardown()
    files = sorted(offline.rglob("*.wandb"))
    assert [run_id(file) for file in files] == [first.version] * 2
    assert [logged(file) for file in files] == [{s: straight[s] for s in range(5)}, {5: resumed[-1]["loss"]}]

    # Once more from the same checkpoint: what the second training sent counts too.
    assert ResilientWandbLogger(save_dir=offline / "c", ckpt_path=checkpoint).record.step == 5
    assert ResilientWandbLogger(save_dir=offline / "c", ckpt_path=checkpoint, id="own").record.step == -1
    for file in first.record.files:
        Path(file).unlink()
    assert ResilientWandbLogger(save_dir=offline / "c", ckpt_path=checkpoint).record.step == 1


def test_a_checkpoint_without_a_run_starts_one(offline):
    checkpoint = offline / "a.ckpt"
    trainer, _, _ = fit(offline / "run", None)
    trainer.save_checkpoint(checkpoint)
    assert ResilientWandbLogger(ckpt_path=checkpoint).record.step == -1
    with pytest.raises(InvalidValueError, match=r"ckpt_path is 'no\.ckpt', but there is no such file\."):
        ResilientWandbLogger(ckpt_path="no.ckpt")


def test_the_config_tells_versions_and_commit(offline):
    logger = ResilientWandbLogger(save_dir=offline, offline=True)
    logger.log_hyperparams({"mixup_alpha": 0.2})
    config, _ = config_and_history(run_file(offline))
    assert config == {**run_facts(), "mixup_alpha": 0.2}
    assert config["versions"]["lightning"] == pl.__version__


def test_reports_are_an_artifact(offline):
    folder = offline / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("summary.json", "curves.png", "weights.ckpt", "checkpoints/a.json"):
        (folder / name).write_text("{}")
    logger = ResilientWandbLogger(save_dir=offline, offline=True)
    logger.log_folder(folder)
    assert artifacts(run_file(offline)) == {f"reports-{logger.version}": ["curves.png", "summary.json"]}


def test_other_processes_start_no_run(offline, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = ResilientWandbLogger(save_dir=offline / "run")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1.0})
    logger.log_folder(offline)
    logger.experiment.log({"a": 1.0})
    logger.finalize("success")
    assert not (offline / "run").exists()
    assert wandb.run is None


def test_pickling_starts_no_run_and_keeps_the_id(offline):
    logger = ResilientWandbLogger(save_dir=offline)
    copy = pickle.loads(pickle.dumps(logger))
    assert wandb.run is None
    assert copy.version == logger.version
    assert logger.experiment.id == pickle.loads(pickle.dumps(logger)).version


def test_a_timeout_has_to_be_above_zero():
    with pytest.raises(InvalidValueError, match="timeout is 0"):
        ResilientWandbLogger(timeout=0)
