"""Data that a recipe builds, once for the tests of a file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from lightning_tuning.cli.tuning_cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds a recipe's data where its config.yaml looks for them; the folder to run it in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))

        def build(recipe):
            folder = tmp_path_factory.mktemp(recipe)
            patch.chdir(folder)
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            importlib.import_module(f"recipes.{recipe}.build").main([])
            return folder

        yield build


@pytest.fixture(scope="module")
def fit():
    """Trains by a recipe's files for a few steps, in a folder; the metrics, and the run's folder."""

    def run(folder, recipe, *arguments, configs=("config.yaml",), steps=2):
        files = [f"--config={ROOT / 'recipes' / recipe / name}" for name in configs]
        short = [f"--trainer.max_steps={steps}", "--trainer.enable_progress_bar=false", "--run.name=short"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("PL_GLOBAL_SEED", "0")  # a run sets it; this puts it back
            assert main(["fit", *files, *short, *arguments]) == 0
        newest = max((folder / "runs" / "short").iterdir())
        return json.loads((newest / "summary.json").read_text())["metrics"], newest

    return run
