"""The hosts of other targets, with a user's datamodule, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from lightning_tuning.cli.tuning_cli import main
from tests.contract.nets import assert_equal_state

CONFIG = """
model:
  class_path: {host}
  init_args: {arguments}
data: {{class_path: tests.host_data.{data}}}
trainer: {{max_epochs: 2, log_every_n_steps: 1, accelerator: cpu, enable_progress_bar: false}}
run: {{name: hosts, monitor: {monitor}, mode: min}}
"""
REGRESSION = ("Regressor", "DiabetesData", "{in_channels: 10, dropout: 0.2}", "val/rmse")
MULTILABEL = (
    "MultiLabelClassifier",
    "DigitBitsData",
    "{network: mlp, num_classes: 3, image_size: 8, class_weights: [1, 2, 1.5], dropout: 0.2}",
    "val/loss",
)


def write(tmp_path, monkeypatch, row, **changes):
    monkeypatch.chdir(tmp_path)
    host, data, arguments, monitor = row
    text = CONFIG.format(**{"host": host, "data": data, "arguments": arguments, "monitor": monitor, **changes})
    Path("config.yaml").write_text(text)


def fit(*args, code=0):
    before = {*Path("runs").glob("*/*")}
    assert main(["fit", "--config", "config.yaml", *args]) == code
    (folder,) = {*Path("runs").glob("*/*")} - before or {None}
    return folder


@pytest.mark.parametrize("row", [REGRESSION, MULTILABEL], ids=lambda row: row[0])
def test_fit_resume_and_predict(row, tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, row)
    on = ["--model.mixup_alpha=0.4", "--model.ema_teacher_decay=0.9", "--model.sam_rho=0.05", "--model.loss=mae"]
    on[3:] = [] if row is MULTILABEL else on[3:]
    straight = fit(*on)
    test = json.loads((straight / "summary.json").read_text())
    wanted = {"test/loss", "test/r2", "test/mae", "test/rmse"} if row is REGRESSION else {"test/f1", "test/map"}
    assert wanted <= test["metrics"].keys()
    first = fit(*on, "--trainer.max_epochs=1")
    second = fit("--ckpt_path", str(first / "checkpoints" / "last.ckpt"))  # the techniques are in the checkpoint
    states = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (straight, second)
    ]
    assert_equal_state(*states)
    assert main(["predict", "--config", "config.yaml", "--ckpt_path", str(straight / "checkpoints" / "last.ckpt")]) == 0
    (path,) = Path("runs").glob("*/*-predict/predictions.pt")
    assert torch.cat(torch.load(path, weights_only=True)).shape == (44, 1 if row is REGRESSION else 3)


@pytest.mark.parametrize(
    ("row", "args", "message"),
    [
        (
            REGRESSION,
            ["--model.in_channels=7"],
            "The data's images have 10 channels, model.in_channels is 7; write --mo",
        ),
        (REGRESSION, ["--model.loss=bce"], "model.loss is 'bce'. It must be one of mse, mae, huber, or the class path"),
        (REGRESSION, ["--data=tests.host_data.DigitBitsData", "--model.network=cnn"], "images have 1 channels"),
        (
            REGRESSION,
            ["--data=tests.host_data.DigitBitsData", "--model.network=cnn", "--model.in_channels=1"],
            "target is torch.int64 of shape [44, 3]; it must be floats [N, 1] or [N]. For class ids there is",
        ),
        (MULTILABEL, ["--model.class_weights=[1,2]"], "class_weights has length 2 and num_classes is 3; write one wei"),
        (MULTILABEL, ["--model.label_smoothing_epsilon=0.1"], "label_smoothing_epsilon"),
    ],
)
def test_errors_in_one_line(row, args, message, tmp_path, monkeypatch, capsys):
    write(tmp_path, monkeypatch, row)
    fit(*args, code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-tuning")]
    assert message in lines[-1]


@pytest.mark.parametrize("host", ["Regressor", "MultiLabelClassifier"])
def test_help_explains_every_argument(host, capsys):
    assert main(["fit", "--model.help", host]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, text in {
        "lr": "Learning rate of an optimizer given by name",
        "dropout": "Probability that a feature before the last layer",
        "mixup_alpha": "Parameter of the Beta distribution",
        **({"huber_delta": "Error up to which"} if host == "Regressor" else {"focal_alpha": "Weight of the positives"}),
    }.items():
        assert f"--model.{name} " in shown
        assert text in shown
