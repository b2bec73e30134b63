import re
from datetime import datetime
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_tuning.runs.folder
from lightning_tuning.callbacks import GradientNorm
from lightning_tuning.cli.tuning_cli import TuningCLI
from lightning_tuning.runs import JournalLogger, read_journal
from tests.cli.toy import ToyData, ToyModel


def metrics_of(checkpoint, stage):
    model = ToyModel()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    x, y = ToyData(batch_size=24).loader().dataset.tensors
    with torch.no_grad():
        probability = model(x).softmax(1)[range(24), y]
    accuracy = (probability > 0.5).float().mean().item()
    return pytest.approx({f"{stage}/accuracy": accuracy, f"{stage}/loss": -probability.log().mean().item()})


def test_fit_leaves_one_folder_with_everything(run, summary, capsys):
    folder = run("fit")
    assert folder.parent == Path("runs/toy")
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.jsonl",
        "hparams.json",
        "curves.png",
        "summary.json",
    }
    assert {p.name for p in Path().iterdir()} == {"recipes", "runs"}
    facts = summary(folder)
    assert facts["steps"] == 6
    assert facts["epochs"] == 2
    assert facts["metrics"] == metrics_of(folder / "checkpoints/best.ckpt", "test")
    assert facts["metrics"] != metrics_of(folder / "checkpoints/last.ckpt", "test")
    logged = [record["val/accuracy"] for record in read_journal(folder / "metrics.jsonl") if "val/accuracy" in record]
    assert facts["best_value"] == pytest.approx(max(logged))
    out = capsys.readouterr().out
    assert re.search(r"^test/accuracy +0\.\d+$", out, re.MULTILINE)
    assert re.search(rf"^folder +{folder}$", out, re.MULTILINE)


def test_the_journal_has_losses_learning_rate_and_gradient_norm(run):
    records = list(read_journal(run("fit") / "metrics.jsonl"))
    by_key = {key: [r[key] for r in records if key in r] for r in records for key in r}
    assert by_key["lr-SGD"] == [0.1] * 6
    assert len(by_key["train/loss_step"]) == len(by_key["grad_norm/total"]) == 6
    assert by_key["train/loss_epoch"][0] == pytest.approx(sum(by_key["train/loss_step"][:3]) / 3, rel=1e-5)


def test_runs_of_one_second_do_not_collide(run, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 20, 23, 36, 0)

    monkeypatch.setattr(lightning_tuning.runs.folder, "datetime", Clock)
    names = [run("fit", "--trainer.max_epochs=1", "--run.test=false").name for _ in range(2)]
    assert names == ["20261120-233600", "20261120-233600-2"]


def test_the_saved_configuration_repeats_the_run(run, summary):
    first = run("fit", "--model.lr=0.3", "--run.name=first")
    second = run("fit", f"--config={first}/config.yaml")
    assert second.parent.name == "first"
    ours, theirs = ([r.get("train/loss_step") for r in read_journal(f / "metrics.jsonl")] for f in (first, second))
    assert ours == theirs
    assert summary(first)["metrics"] == summary(second)["metrics"]


def test_a_key_and_a_preset_on_the_command_line(run):
    folder = run(
        "fit", "--config", "preset:debug", "-c", "preset:deterministic", "--model.lr=0.2", "--trainer.max_epochs=1"
    )
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["lr"] == 0.2
    assert saved["trainer"]["limit_val_batches"] == 2
    assert saved["trainer"]["deterministic"] is True
    assert saved["trainer"]["max_epochs"] == 1
    assert saved["seed_everything"] == 0


def test_name_without_a_configuration_is_the_models(run, config):
    Path(config).write_text("{}")
    args = ["--model=tests.cli.toy.ToyModel", "--data=tests.cli.toy.ToyData", "--trainer.max_epochs=1"]
    assert run("fit", *args, "--trainer.accelerator=cpu").parent.name == "toy"
    Path(config).rename("renamed.yaml")
    Path(config).write_text("{}")
    assert run("fit", "--run.name=mine", *args, "--trainer.accelerator=cpu").parent.name == "mine"


def test_evaluations_have_folders_of_their_own(run, summary):
    best = run("fit") / "checkpoints/best.ckpt"
    tested = run("test", f"--ckpt_path={best}")
    assert tested.name.endswith("-test")
    assert summary(tested)["metrics"] == metrics_of(best, "test")
    validated = run("validate", "--ckpt_path=best")
    assert summary(validated)["metrics"] == metrics_of(best, "val")
    predicted = run("predict", "--ckpt_path=best")
    logits = torch.cat(torch.load(predicted / "predictions.pt", weights_only=True))
    assert logits.shape == (24, 2)
    assert not list(Path("runs").glob("*/*-*-*/checkpoints"))


def test_a_checkpoint_brings_its_arguments_and_flags_win(run):
    last = run("fit", "--model.lr=0.3") / "checkpoints/last.ckpt"
    resumed = run("fit", f"--ckpt_path={last}", "--trainer.max_epochs=3")
    assert yaml.safe_load((resumed / "config.yaml").read_text())["model"]["init_args"]["lr"] == 0.3
    assert [r["step"] for r in read_journal(resumed / "metrics.jsonl") if "lr-SGD" in r] == [6, 7, 8]
    changed = run("test", f"--ckpt_path={last}", "--model.lr=0.4")
    assert yaml.safe_load((changed / "config.yaml").read_text())["model"]["init_args"]["lr"] == 0.4


def test_a_configuration_wins_over_the_checkpoint(run):
    last = run("fit", "--model.lr=0.3") / "checkpoints/last.ckpt"
    Path("other.yaml").write_text("model: {class_path: tests.cli.toy.ToyModel, init_args: {lr: 0.5}}")
    resumed = run("fit", "--config=other.yaml", f"--ckpt_path={last}", "--trainer.max_epochs=3")
    assert yaml.safe_load((resumed / "config.yaml").read_text())["model"]["init_args"]["lr"] == 0.5


def test_a_checkpoint_of_another_network(run, capsys):
    last = run("fit", "--run.name=toy") / "checkpoints/last.ckpt"
    Path("wide.yaml").write_text("model: {class_path: tests.cli.toy.WideModel}")
    run("fit", "--config=wide.yaml", f"--ckpt_path={last}", "--trainer.max_epochs=3", code=2)
    assert "The checkpoint does not fit the model: " in capsys.readouterr().err


def test_fast_dev_run_leaves_nothing(run):
    assert run("fit", "--trainer.fast_dev_run=true") is None
    assert not Path("runs").exists()


def test_no_test_on_request(run, summary):
    assert summary(run("fit", "--run.test=false"))["metrics"] == {}


class Recorder(Callback):
    """Keeps the Trainer of the last run."""

    trainer = None

    def setup(self, trainer, pl_module, stage):
        type(self).trainer = trainer


def trainer_of(config, *args):
    TuningCLI(
        ["fit", "-c", config, "--trainer.max_epochs=1", "--trainer.callbacks+=tests.cli.test_runs.Recorder", *args]
    )
    return Recorder.trainer


def count(trainer, kind):
    return sum(isinstance(callback, kind) for callback in trainer.callbacks)


def test_defaults_give_way_to_the_users(config):
    trainer = trainer_of(config)
    assert count(trainer, LearningRateMonitor) == count(trainer, GradientNorm) == 1
    assert [c.filename for c in trainer.callbacks if isinstance(c, ModelCheckpoint)] == ["best", "last"]
    trainer = trainer_of(
        config,
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=epoch",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.filename=mine",
        "--run.monitor=null",
    )
    assert [c.logging_interval for c in trainer.callbacks if isinstance(c, LearningRateMonitor)] == ["epoch"]
    assert [c.filename for c in trainer.callbacks if isinstance(c, ModelCheckpoint)] == ["mine"]
    assert Path(trainer.log_dir, "checkpoints/mine.ckpt").is_file()


def test_the_journal_joins_the_users_logger(config):
    trainer = trainer_of(config, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    assert [type(logger) for logger in trainer.loggers] == [JournalLogger, CSVLogger]
    assert trainer.log_dir == trainer.default_root_dir == str(trainer.loggers[0].folder)
    assert list(Path("csv").rglob("metrics.csv"))


@pytest.fixture
def _wandb_ends():
    """No thread of W&B's service outlives the test: a later test that forks could then deadlock."""
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("_wandb_ends")
@pytest.mark.slow
def test_wandb_files_go_into_the_run_folder(config, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = Path(trainer_of(config, "--trainer.logger=WandbLogger", "--trainer.logger.offline=true").log_dir)
    assert list(folder.glob("wandb/offline-run-*"))
    assert not Path("wandb").exists()


def test_a_run_that_stops_early_ends_with_test_and_summary(run, summary, capsys):
    stop = "--trainer.callbacks=EarlyStop", "--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.patience=1ep"
    folder = run("fit", *stop, "--trainer.callbacks.min_delta=9", "--trainer.max_epochs=5", "--run.monitor=null")
    found = summary(folder)
    assert found["epochs"] == 2
    assert re.fullmatch(r"val/loss did not improve on .* for 1ep, up to step \d+, epoch 2\.", found["stopped"])
    assert "test/loss" in found["metrics"]
    assert found["stopped"] in capsys.readouterr().out
