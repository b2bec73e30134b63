import json
from pathlib import Path

import pytest

from lightning_tuning.cli.tuning_cli import main

CONFIG = """
model: {class_path: tests.cli.toy.ToyModel}
data: {class_path: tests.cli.toy.ToyData}
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
run: {monitor: val/accuracy, mode: max}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A recipe's file; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipes" / "toy" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def run(config):
    """Run a command with the recipe; the new run's folder (None if there is none) once the exit code is checked."""

    def run(*args, code=0):
        before = set(Path("runs").glob("*/*"))
        assert main([args[0], "--config", config, *args[1:]]) == code
        new = set(Path("runs").glob("*/*")) - before
        assert len(new) <= 1
        return new.pop() if new else None

    return run


@pytest.fixture
def summary():
    def read(folder):
        return json.loads((folder / "summary.json").read_text())

    return read
