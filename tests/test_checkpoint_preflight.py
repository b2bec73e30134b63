from decimal import Decimal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_tuning.callbacks import ExactResume
from lightning_tuning.errors import InvalidValueError


class Net(LightningModule):
    """Learns nothing much."""

    steps = 0

    def __init__(self, root=None, rate=0.1, ignore=None):
        super().__init__()
        self.save_hyperparameters(ignore=ignore)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.layer(batch.float()[:, None]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    """Two numbers."""

    def __init__(self, folder="a"):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(range(2))


class Stateful(Callback):
    """Saves what it is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def fit(folder, net, data=None, *callbacks, keep=True):
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=keep,
        default_root_dir=folder,
        callbacks=[ExactResume(), *([ModelCheckpoint(folder)] if keep else []), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(net, datamodule=data or Data())
    return trainer


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Path("a"), r"pathlib\S*\.PosixPath"),
        (Decimal(1), r"decimal\.Decimal"),
        ({"deep": [Path("a")]}, r"pathlib\S*\.PosixPath"),
        (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (torch.nn.functional.relu, r"torch\.nn\.functional\.relu"),
    ],
)
@pytest.mark.filterwarnings("ignore:Attribute 'root' is an instance of `nn.Module`")
def test_a_hyper_parameter_is_named_before_training(value, name, tmp_path):
    net = Net(root=value)
    message = rf"Hyper-parameters of Net: root \({name}\)\. Write self\.save_hyperparameters\(ignore=\['root'\]\)"
    with pytest.raises(InvalidValueError, match=message):
        fit(tmp_path, net)
    assert net.steps == 0
    assert not list(tmp_path.iterdir())


def test_what_it_says_to_write_helps(tmp_path):
    fit(tmp_path, Net(root=Path("a"), ignore=["root"]))
    (file,) = tmp_path.glob("*.ckpt")
    assert torch.load(file, weights_only=True)["hyper_parameters"]["rate"] == 0.1


def test_all_at_once(tmp_path):
    with pytest.raises(InvalidValueError) as caught:
        fit(tmp_path, Net(root=Path("a"), rate=Decimal(1)), Data(folder=Path("b")), Stateful({"a": Path("c")}))
    message = str(caught.value)
    assert "ignore=['root', 'rate']" in message
    assert "Hyper-parameters of Data: folder (" in message
    assert "The state of Stateful: pathlib" in message
    with pytest.raises(InvalidValueError, match="The state of Stateful: a dict that cannot be pickled: "):
        fit(tmp_path, Net(), None, Stateful({"a": lambda x: x}))
    assert "\n" not in message


def test_ordinary_values_pass(tmp_path):
    net = Net(root=[1, 2.5, None, True, "a", (1, 2), {"b": torch.zeros(3)}])
    fit(tmp_path, net, None, Stateful({"best": torch.tensor(0.5), "waited": 3}))
    assert net.steps == 2


def test_without_checkpoints_nothing_is_refused(tmp_path):
    net = Net(root=Path("a"))
    fit(tmp_path, net, keep=False)
    assert net.steps == 2


class Late(Stateful):
    """Has a state as soon as the training has begun."""

    def __init__(self):
        pass

    def on_train_start(self, trainer, pl_module):
        self.state = {"steps": 3}


def test_a_state_that_comes_later_is_not_asked_for(tmp_path):
    net = Net()
    fit(tmp_path, net, None, Late())
    assert net.steps == 2
