import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_tuning.modules import Classifier


class SavedClassifier(Classifier):
    """A host that saves its arguments, as the ready ones do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()


def parse(*args, model="lightning_tuning.modules.Classifier"):
    return LightningCLI(
        LightningModule,
        subclass_mode_model=True,
        run=False,
        args=[
            f"--model={model}",
            *args,
            "--trainer.logger=false",
            "--trainer.accelerator=cpu",
            "--trainer.enable_checkpointing=false",
        ],
        save_config_callback=None,
        auto_configure_optimizers=False,
    )


BY_CLASS_PATH = """
model:
  class_path: {model}
  init_args:
    network: {{class_path: torch.nn.Linear, init_args: {{in_features: 6, out_features: 3}}}}
    num_classes: 3
    loss: {{class_path: torch.nn.CrossEntropyLoss, init_args: {{label_smoothing: 0.25}}}}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.3}}}}
    schedule: {{class_path: torch.optim.lr_scheduler.StepLR, init_args: {{step_size: 5}}}}
"""


def test_everything_by_name():
    model = parse(
        *["--model.network=wrn_16_2", "--model.in_channels=3", "--model.num_classes=7", "--model.optimizer=sgd"],
        *["--model.schedule=cosine", "--model.warmup_steps=4", "--model.lr=0.5", "--model.weight_decay=0.01"],
    ).model
    assert sum(p.numel() for p in model.network.parameters()) == 691_674 - 3 * 129
    config = model.configure_optimizers()
    assert [g["weight_decay"] for g in config["optimizer"].param_groups] == [0.01, 0.0]
    assert [g["lr"] for g in config["optimizer"].param_groups] == [0.125, 0.125]
    assert config["lr_scheduler"]["interval"] == "step"


def test_everything_by_class_path(tmp_path):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(BY_CLASS_PATH.format(model="lightning_tuning.modules.Classifier"))
    model = parse(f"--config={config_file}").model
    assert isinstance(model.network, nn.Linear)
    assert model.network.out_features == 3
    assert model.loss.label_smoothing == 0.25
    config = model.configure_optimizers()
    # SGD's own arguments and defaults: nothing of the classifier's, nothing of AdamW's.
    (group,) = config["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.3, 0.0, 0.0)
    assert config["lr_scheduler"]["scheduler"].step_size == 5


def test_class_paths_and_their_arguments_on_the_command_line():
    model = parse(
        *["--model.network=torch.nn.Linear", "--model.network.in_features=6", "--model.network.out_features=10"],
        *["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.25"],
        *["--model.schedule=lightning.pytorch.cli.ReduceLROnPlateau", "--model.schedule.monitor=val/f1"],
    ).model
    assert model.network.in_features == 6
    config = model.configure_optimizers()
    assert config["optimizer"].param_groups[0]["lr"] == 0.25
    assert config["lr_scheduler"]["monitor"] == "val/f1"


def test_a_checkpoint_of_the_command_line_loads_with_its_class_paths(tmp_path):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(BY_CLASS_PATH.format(model=f"{__name__}.SavedClassifier"))
    cli = parse(f"--config={config_file}", model=f"{__name__}.SavedClassifier")
    data = torch.utils.data.DataLoader([(torch.ones(6), 1)] * 4, batch_size=2)
    cli.trainer.fit_loop.max_epochs = 1
    cli.trainer.fit(cli.model, data, data)
    cli.trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SavedClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded.network.weight, cli.model.network.weight)
    assert loaded.configure_optimizers()["optimizer"].param_groups[0]["lr"] == 0.3


def test_an_unknown_name_is_refused_with_the_list(capsys):
    with pytest.raises(SystemExit):
        parse("--model.network=resnet19")
    assert "'mlp', 'cnn', 'resnet18', 'wrn_16_2'" in capsys.readouterr().err
