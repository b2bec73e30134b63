"""The command that runs Lightning's own tests, on a checkout with a few tests in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lightning_suite.selection import reason_to_deselect

# The adapters are imported in the command's process alone: here their names would stand beside Lightning's own, and
# `--trainer.callbacks+=ModelCheckpoint` in other tests would name two classes.
TESTS = '''
import inspect

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tests_pytorch.helpers import Net


class Own(EarlyStopping):
    """Made anew in spawned processes, of the same base."""


def test_names():
    assert [base.__name__ for base in Own.__mro__[1:4]] == ["EarlyStopping", "EarlyStop", "EarlyStopping"]
    assert ModelCheckpoint.__mro__[1].__name__ == "RunCheckpoint"


def test_the_adapter_takes_lightnings_arguments():
    ours, _, theirs = (inspect.signature(kind).parameters for kind in Own.__mro__[1:4])
    assert [*ours] == [*theirs]
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_spawned(tmp_path):
    stop = Own("loss", patience=1)
    trainer = pl.Trainer(max_epochs=9, callbacks=[stop], strategy="ddp_spawn", devices=2, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(Net())


def test_early_stopping_squeezes():
    assert False
'''
HELPERS = """
from lightning.pytorch.demos.boring_classes import BoringModel


class Net(BoringModel):
    def on_train_epoch_end(self):
        self.log("loss", 1.0)

    def on_train_end(self):
        assert self.trainer.current_epoch == 2
"""


def test_reasons():
    assert reason_to_deselect("test_early_stopping_log_info[False-1-0-bar]") == "tests the private function `_log_info`"
    assert reason_to_deselect("test_early_stopping_patience[loss_values0-3-4]") is None


@pytest.mark.slow
def test_the_command_runs_the_tests_with_our_classes_and_tells_what_it_left_out(tmp_path):
    folder = tmp_path / "tests" / "tests_pytorch"
    (folder / "callbacks").mkdir(parents=True)
    for package in (folder, folder / "callbacks"):
        (package / "__init__.py").touch()
    (folder / "callbacks" / "test_early_stopping.py").write_text(TESTS)
    (folder / "helpers.py").write_text(HELPERS)
    command = [sys.executable, "-m", "tests.lightning_suite", f"--lightning={tmp_path}", "-q"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| test_early_stopping.py | EarlyStop | 3 | 0 | 0 | 1 |" in done.stdout
    assert "test_early_stopping_squeezes: replaces the private method" in done.stdout
