"""Presets and the global batch on the command line."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_tuning.callbacks import ExactResume, GradientNorm, MonitorCheck
from lightning_tuning.cli import main
from lightning_tuning.runs import GlobalBatch, read_journal
from tests.cli.test_process import ROOT, command
from tests.cli.test_runs import count, trainer_of

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2")


def test_presets_compose_and_flags_win(config):
    trainer = trainer_of(config, "-c=preset:cpu", "-c=preset:bf16", "-c=preset:debug", "--trainer.log_every_n_steps=2")
    assert (trainer.precision, trainer.limit_val_batches, trainer.log_every_n_steps) == ("bf16-mixed", 2, 2)
    saved = yaml.safe_load(Path(trainer.default_root_dir, "config.yaml").read_text())
    assert (saved["trainer"]["accelerator"], saved["trainer"]["devices"]) == ("cpu", 1)


def test_fast_leaves_out_what_acts_in_a_step(config, capsys):
    trainer = trainer_of(config, "-c=preset:fast", "--run.monitor=null")
    kinds = (ExactResume, MonitorCheck, GlobalBatch, GradientNorm, LearningRateMonitor)
    assert [count(trainer, kind) for kind in kinds] == [1, 1, 1, 0, 0]
    assert trainer.checkpoint_callbacks == []
    records = list(read_journal(Path(trainer.log_dir, "metrics.jsonl")))
    keys = {key for record in records for key in record}
    assert {"val/loss", "train/loss_epoch", "test/accuracy"} <= keys
    assert not {"train/loss_step", "lr-SGD", "grad_norm/total"} & keys
    assert "test/accuracy" in capsys.readouterr().out


def test_the_numbers_of_a_launcher_are_in_the_saved_configuration(config, monkeypatch, capsys):
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert main(["plan", "-c", config, "-c", "preset:multi_node", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (printed["devices"], printed["num_nodes"], printed["strategy"]) == (3, 3, "auto")


def test_a_global_batch(config, told):
    trainer = trainer_of(config, "--run.global_batch_size=24")
    assert trainer.accumulate_grad_batches == 3
    assert trainer.global_step == 1
    assert "Global batch 24 = 8 x 3 accumulated x 1 rank; the learning rate is not scaled by it." in told.messages


def test_every_run_tells_its_global_batch(config, told):
    assert trainer_of(config).accumulate_grad_batches == 1
    assert "Global batch 8 = 8 x 1 rank; the learning rate is not scaled by it." in told.messages


def test_barebones_has_the_global_batch_too(config):
    settings = ["logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"]
    changes = ["--run.monitor=null", *(f"--trainer.{name}=null" for name in settings)]
    trainer = trainer_of(config, "--trainer.barebones=true", *changes, "--run.global_batch_size=24")
    assert (trainer.accumulate_grad_batches, trainer.global_step) == (3, 1)


@pytest.mark.parametrize("devices", [1, 2])
def test_plot_schedule_knows_it(devices, config, capsys):
    """24 points in batches of 4: six batches of one process, two to a step, or three of each of two processes."""
    told = ["--run.global_batch_size=8", f"--trainer.devices={devices}", "--data.batch_size=4"]
    assert main(["plot-schedule", "-c", config, *told]) == 0
    assert "6 optimizer steps in 2 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_make_as_many_steps_as_one(config):
    done = command("fit", "-c", config, "-c", "preset:ddp", *TWO, "--run.global_batch_size=8", "--data.batch_size=4")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Global batch 8 = 4 x 2 ranks; the learning rate is not scaled by it.\n") == 1
    one = command("fit", "-c", config, "-c", "preset:cpu", "--run.global_batch_size=8", "--data.batch_size=4")
    assert "Global batch 8 = 4 x 2 accumulated x 1 rank;" in one.stderr
    # Lightning's distributed sampler has an order of its own, so of the toy's plain loader the numbers of steps agree.
    assert [re.search(r"^steps +(.*)$", text, re.MULTILINE)[1] for text in (done.stdout, one.stdout)] == [
        "6 (2 epochs)"
    ] * 2


@pytest.mark.slow
def test_two_nodes_of_torchrun(config):
    """Two agents on this machine, each of which starts one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    program = ["-m", "lightning_tuning", "fit", "-c", config, "-c", "preset:multi_node", "-c", "preset:ddp"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *settings, f"--node-rank={rank}", *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for rank in range(2)
    ]
    try:
        texts = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # and torchrun its workers
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert ["Global batch 16 = 8 x 2 ranks;" in text for text in texts] == [True, False]
    (folder,) = Path("runs/toy").iterdir()
    assert f"folder             {folder}\n" in texts[0]
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]
    assert (saved["devices"], saved["num_nodes"]) == (1, 2)
