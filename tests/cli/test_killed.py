"""Runs of the command that are killed, by SIGKILL and by SIGTERM, and started again with the same command."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from tests.helpers_checkpoints import assert_the_same_end, last_of

from .test_process import command

pytestmark = pytest.mark.slow
CONFIG = """
model:
  class_path: ImageClassifier
  init_args: {network: mlp, num_classes: 10, mixup_alpha: 0.2, sam_rho: 0.05, ema_teacher_decay: 0.9}
data:
  class_path: DigitsDataModule
  init_args: {num_labels: 100, batch_size: 8, steps_per_epoch: 6}
trainer:
  max_epochs: 3
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  accumulate_grad_batches: 2
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {filename: last, every_n_train_steps: 1, enable_version_counter: false}
    - class_path: tests.cli.test_killed.Killed
run: {test: false}
"""
BATCHES = 18


class Killed(Callback):
    """Signals its process in the batch that the environment names, counted over the run."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        place, signum, rank = map(int, os.environ.get("KILL", "-1,9,0").split(","))
        if trainer.fit_loop.epoch_loop.total_batch_idx == place and trainer.global_rank == rank:
            os.kill(os.getpid(), signum)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)

    def fit(name, place=-1, signum=signal.SIGKILL, rank=0, *args):
        monkeypatch.setenv("KILL", f"{place},{int(signum)},{rank}")
        return command("fit", "-c", "config.yaml", f"--run.name={name}", "--ckpt_path=auto", *args)

    return fit


def test_a_chain_of_five_sigkills(fit):
    assert fit("whole").returncode == 0
    places = sorted(random.Random(7).sample(range(2, BATCHES), 5))
    assert [fit("killed", place).returncode for place in places] == [-signal.SIGKILL] * 5
    assert len(list(Path("runs/killed").iterdir())) == 5
    done = fit("killed")
    assert done.returncode == 0, done.stderr
    assert_the_same_end("runs/whole", "runs/killed", 9)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_of_two_ranks_within_a_window(fit, rank):
    two = ("-c", "preset:ddp", "--trainer.accelerator=cpu", "--trainer.devices=2")
    stopped = fit("stopped", 8, signal.SIGTERM, rank, *two)  # the first batch of a window of the second epoch
    assert stopped.returncode == 143, stopped.stderr
    assert "Stopped by SIGTERM after step 5. Continue with --ckpt_path=" in stopped.stderr
    assert last_of("runs/stopped")["global_step"] == 5
    for name in ("stopped", "whole"):
        done = fit(name, -1, 9, 0, *two)
        assert done.returncode == 0, done.stderr
    assert_the_same_end("runs/whole", "runs/stopped", 9)
