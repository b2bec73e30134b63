"""W&B, TensorBoard and CSV on the command line: beside the journal, in the run's folder."""

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tuning.runs import read_journal
from tests.helpers_wandb import artifacts, config_and_history, run_id

WANDB = ("--trainer.logger=ResilientWandbLogger", "--trainer.logger.offline=true")


def history(folder):
    """The run's file, and the values in it by name and step."""
    import wandb

    wandb.teardown()
    (path,) = folder.rglob("*.wandb")
    rows = config_and_history(path)[1]
    values = {
        (name, row["trainer/global_step"]): value
        for row in rows
        if "trainer/global_step" in row
        for name, value in row.items()
        if not name.startswith(("_", "curves.")) and name not in ("epoch", "trainer/global_step")
    }
    return path, values


def journal(folder):
    return {
        (name, line["step"]): value
        for line in read_journal(folder / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("epoch", "step")
    }


def test_the_run_lies_in_its_folder_with_all_that_the_journal_has(run, offline):
    guard = ("--trainer.callbacks=FiniteGuard", "--trainer.callbacks.patience=4")
    folder = run("fit", *WANDB, "--config=preset:cpu", "--trainer.logger.log_reports=true", *guard)
    path, values = history(folder)
    assert path.is_relative_to(folder / "wandb")
    assert values == pytest.approx(journal(folder))
    config, _ = config_and_history(path)
    hparams = json.loads((folder / "hparams.json").read_text())
    assert config["presets"] == hparams["presets"] == ["cpu"]
    assert config["versions"] == hparams["versions"]
    assert config["seed_everything"] == hparams["seed_everything"] == 0
    assert config["data"] == hparams["data"] == {"class_path": "tests.cli.toy.ToyData", "init_args": {"batch_size": 8}}
    assert config["trainer"] == hparams["trainer"]
    assert "logger" not in config["trainer"]
    assert config["trainer"]["max_epochs"] == 2
    (guard,) = config["trainer"]["callbacks"]
    assert (guard["class_path"], guard["init_args"]["patience"]) == ("lightning_tuning.FiniteGuard", 4)
    assert config["lr"] == 0.1
    (files,) = artifacts(path).values()
    assert {"summary.json", "curves.png", "metrics.jsonl", "config.yaml"} <= set(files)


def test_a_resumed_run_continues_the_wandb_run_and_repeats_no_value(run, offline):
    straight = journal(run("fit", "--run.test=false"))
    with pytest.raises(ZeroDivisionError):
        run("fit", *WANDB, "--run.test=false", "--model=tests.cli.toy.Failing", "--model.lr=0.1")
    (first,) = {path.parents[2] for path in offline.rglob("*.wandb")}
    second = run(
        "fit",
        *WANDB,
        "--run.test=false",
        f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}",
        "--model=tests.cli.toy.ToyModel",
    )
    (path_1, values_1), (path_2, values_2) = history(first), history(second)
    assert run_id(path_1) == run_id(path_2)
    assert not values_1.keys() & values_2.keys()
    assert values_1 | values_2 == pytest.approx(straight)


def test_tensorboard_and_csv_have_what_the_journal_has(run, offline):
    folder = run(
        "fit",
        "--run.test=false",
        '--trainer.logger=[{"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}, '
        '{"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}]',
    )
    expected = journal(folder)
    (board_folder,) = offline.glob("tb/*/*")
    accumulator = EventAccumulator(str(board_folder)).Reload()
    names = {name for name, _ in expected}
    board = {(name, e.step): e.value for name in names for e in accumulator.Scalars(name)}
    assert board == pytest.approx(expected, rel=1e-5)
    assert accumulator.Tags()["images"] == ["curves"]
    (table,) = offline.rglob("csv/**/metrics.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    cells = {(name, int(row["step"])): float(row[name]) for row in rows for name in names if row[name]}
    assert cells == pytest.approx(expected)
    (hparams,) = offline.rglob("tb/**/hparams.yaml")
    assert "git_commit" in hparams.read_text() or "versions" in hparams.read_text()
