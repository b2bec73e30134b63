"""The recipe runs as its README says, as a script and from YAML."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from lightning_tuning.cli.tuning_cli import main

RECIPE = Path(__file__).parents[2] / "recipes" / "bring_your_own"


@pytest.fixture
def recipe(monkeypatch):
    """The recipe's ``train.py``, imported as by ``python recipes/bring_your_own/train.py``."""
    monkeypatch.syspath_prepend(str(RECIPE))
    names = ("train", "module", "data")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import train

    yield train
    for name in names:
        sys.modules.pop(name, None)


def test_the_module_knows_nothing_of_the_package():
    for name in ("module.py", "data.py"):
        assert "lightning_tuning" not in (RECIPE / name).read_text()


def test_the_readme_shows_the_class_that_is_trained():
    script = (RECIPE / "train.py").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", (RECIPE / "README.md").read_text(), re.DOTALL)
    added = [line[1:] for line in diff.splitlines() if line.startswith("+")]

    assert len(added) == 2
    for line in added:
        assert line.rstrip(" .") in script


def test_with_all_off_it_scores_as_the_bare_module(recipe):
    bare = recipe.test_accuracy(recipe.DigitNet, seed=3, epochs=4)
    off = recipe.test_accuracy(recipe.Net, seed=3, epochs=4, **recipe.OFF)
    on = recipe.test_accuracy(recipe.Net, seed=3, epochs=4, **recipe.SETTINGS)

    assert off == bare > 50  # ten classes
    assert on != bare


def test_the_table_holds_means_and_paired_differences(recipe, capsys, monkeypatch):
    fake = {(recipe.DigitNet, 0): 90.0, (recipe.DigitNet, 1): 92.0, (recipe.Net, 0): 91.0, (recipe.Net, 1): 95.0}
    monkeypatch.setattr(recipe, "test_accuracy", lambda cls, seed, epochs, **settings: fake[cls, seed])

    assert recipe.main(seeds=2) == {"DigitNet": [90.0, 92.0], "Net": [91.0, 95.0]}

    # One degree of freedom: t = 12.7062; the standard errors are 1, 2 and, of the differences 1 and 3, 1.
    bare, net = capsys.readouterr().out.splitlines()[1:]
    assert bare.split() == ["DigitNet", "91.00", "±", "12.71"]
    assert net.split() == ["Net", "93.00", "±", "25.41", "2.00", "±", "12.71"]


def test_it_runs_as_a_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seeds", "1", "--epochs", "1"])
    monkeypatch.syspath_prepend(str(RECIPE))
    for name in ("module", "data"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    runpy.run_path(str(RECIPE / "train.py"), run_name="__main__")

    assert re.search(r"^Net +\d+\.\d\d +-?\d+\.\d\d$", capsys.readouterr().out, re.MULTILINE)


def test_its_yaml_trains_the_same_class(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code = main(["fit", f"--config={RECIPE / 'config.yaml'}", "--trainer.max_epochs=1", "--run.name=byo"])

    assert code == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    net = recipe.Net(**recipe.SETTINGS)
    net.configure_model()
    net.load_state_dict(state["state_dict"])
    assert {name: state["hyper_parameters"][name] for name in recipe.SETTINGS} == recipe.SETTINGS
    assert state["global_step"] == 200 // 32
