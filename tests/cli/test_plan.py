from pathlib import Path

import pytest
from lightning.pytorch import Callback

from lightning_tuning import GradientNorm, ImageClassifier, plan
from lightning_tuning.cli.tuning_cli import main

MODEL = ["--model=ImageClassifier", "--model.network=mlp"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_plan_and_trains_nothing(folder, capsys):
    settings = {"sam_rho": 0.05, "l1_weight": 1e-5, "mixup_alpha": 0.2}
    assert main(["plan", *MODEL, *(f"--model.{name}={value}" for name, value in settings.items())]) == 0
    assert capsys.readouterr().out.strip() == str(plan(ImageClassifier(network="mlp", **settings)))
    assert not list(folder.iterdir())


def test_nothing_on(capsys):
    assert main(["plan", *MODEL, "--data=DigitsDataModule"]) == 0
    assert capsys.readouterr().out == "No technique is switched on.\n"


def test_a_preset_that_cannot_run_here_can_be_planned(capsys):
    assert main(["plan", *MODEL, "--config=preset:single_gpu", "--model.sam_rho=0.1"]) == 0
    assert "SAMMixin" in capsys.readouterr().out


def test_a_configuration_file_with_a_problem(folder, capsys):
    Path("config.yaml").write_text("model: {class_path: tests.cli.toy.FrozenModel, init_args: {l1_weight: 0.1}}\n")
    assert main(["plan", "--config=config.yaml"]) == 2
    seen = capsys.readouterr()
    assert "L1Mixin" in seen.out
    assert seen.out.endswith(
        "Problem: L1Mixin is on but can change nothing: Frozen has no trainable parameter of two or more dimensions. "
        "All may be frozen. Mend that, or switch it off: l1_weight=0.0.\n"
    )
    assert seen.err == "lightning-tuning: This would not train: see the problem above.\n"


def test_settings_that_fit_would_refuse(capsys):
    own = ["--trainer.callbacks+=ModelCheckpoint", "--run.monitor=val/accuracy", "--run.mode=max"]
    assert main(["plan", *MODEL, *own]) == 2
    assert "the configuration has a ModelCheckpoint of its own, which replaces" in capsys.readouterr().err


def test_callbacks_that_change_something_have_a_row():
    class Doubles(Callback):
        changes = ("gradient",)

        def on_after_backward(self, trainer, pl_module):
            pass

    (row,) = plan(ImageClassifier(network="mlp"), [GradientNorm(), Doubles()]).rows
    assert (row.name, row.stage, row.changes, row.hooks) == (
        "Doubles",
        "callback",
        ("gradient",),
        ("on_after_backward",),
    )
