"""A checkpoint's arguments that stand for code, in each way in which jsonargparse would read them."""

import importlib
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning import DistillationMixin, FrozenTeacherMixin, L1Mixin
from lightning_tuning.checkpoint_file import load_checked
from lightning_tuning.data.plain_datamodule import PlainDataModule
from lightning_tuning.errors import CheckpointError, InvalidValueError
from lightning_tuning.named_code import names_of_code
from tests.helpers_checkpoints import Payload, served
from tests.mixins.tiny import Tiny, batches, fit

EVIL = "open({ran!r}, 'w').close()\nfrom torch import nn\nclass Evil(nn.Identity): pass\n"


class Plain(LightningModule):
    """A network, and what else is annotated in ways that jsonargparse reads."""

    def __init__(self, net: nn.Module | None = None, either: str | nn.Module | None = None, free: Any = None):
        super().__init__()
        self.net, self.either, self.free = net, either, free
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()


class Net(L1Mixin, Plain):
    pass


class Data(PlainDataModule):
    def __init__(self, net: nn.Module | None = None, size: int = 1):
        super().__init__()
        self.net, self.size = net, size


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """What exists as soon as one of the evil modules, ``evil_module`` or ``evil_folder.module``, was imported."""
    ran = tmp_path / "ran"
    (tmp_path / "evil_folder").mkdir()
    for file in ("evil_module.py", "evil_folder/module.py"):
        (tmp_path / file).write_text(EVIL.format(ran=str(ran)))
    (tmp_path / "evil.yaml").write_text("class_path: evil_module.Evil\n")
    (tmp_path / "name.txt").write_text("evil_module.Evil")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield ran
    for name in ("evil_module", "evil_folder.module", "evil_folder"):
        sys.modules.pop(name, None)


EVILS = {
    "class_path": {"class_path": "evil_module.Evil"},
    "name": "evil_module.Evil",
    "quoted": "'evil_module.Evil'",
    "yaml": "{class_path: evil_module.Evil}",
    "escaped": '{"cl\\x61ss_path": "evil_module.Evil"}',
    "file": "evil.yaml",
    "namespace": "evil_folder.module.Evil",
    "deep": {"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "evil_module.Evil"}]}},
    "imported": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}},
}


def save(path, hparams, key="hyper_parameters", by_command_line=True, cls=Net, **more):
    made = {"_class_path": f"{__name__}.{cls.__name__}", "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    state = {**cls().state_dict(), **more} if cls is not Data else {}
    content = {"state_dict": state, key: {**(made if by_command_line else {}), **hparams}}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


@pytest.mark.parametrize("evil", EVILS.values(), ids=EVILS.keys())
@pytest.mark.parametrize("name", ["net", "either", "free"])
def test_loading_a_checkpoint_imports_nothing(name, evil, ran, tmp_path):
    for key in ("hyper_parameters", "hparams"):
        path = save(tmp_path / "a.ckpt", {name: evil}, key)
        with pytest.raises(
            CheckpointError, match=rf"a\.ckpt sets hyper_parameters\.{name}.* to '.*', which is neither"
        ):
            Net.load_from_checkpoint(path)
        with (
            path.open("rb") as file,
            pytest.raises(CheckpointError, match="give this argument to load_from_checkpoint"),
        ):
            Net.load_from_checkpoint(file)
    assert not ran.exists()


def test_what_lightning_itself_does_with_it(ran, tmp_path):
    """Why it needs care: a value of the checkpoint becomes an object of a class that was not imported."""
    Plain.load_from_checkpoint(save(tmp_path / "a.ckpt", {"net": "{class_path: evil_module.Evil}"}, cls=Plain))
    assert ran.exists()


def test_the_caller_may(ran, tmp_path):
    path = save(tmp_path / "a.ckpt", {"net": EVILS["name"], "free": "a text"})
    mine = nn.Identity()
    loaded = Net.load_from_checkpoint(path, net=mine)
    assert loaded.net is mine
    assert loaded.free == "a text"
    assert not ran.exists()
    assert type(Net.load_from_checkpoint(path, weights_only=False).net).__name__ == "Evil"


def test_without_jsonargparse_a_text_is_a_text(ran, tmp_path):
    path = save(tmp_path / "a.ckpt", {"free": "evil_module.Evil"}, by_command_line=False)
    assert Net.load_from_checkpoint(path).free == "evil_module.Evil"
    assert load_checked(Plain.load_from_checkpoint, path).free == "evil_module.Evil"
    assert not ran.exists()


def test_networks_that_are_imported_are_made(tmp_path):
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 5}}
    (tmp_path / "weights.bin").write_bytes(b"{class_path: x}\0")
    weights = {f"net.{name}": value for name, value in nn.Linear(2, 5).state_dict().items()}
    path = save(tmp_path / "a.ckpt", {"net": linear, "free": str(tmp_path / "weights.bin")}, **weights)
    assert Net.load_from_checkpoint(path).net.out_features == 5
    with path.open("rb") as file:
        assert Net.load_from_checkpoint(file).net.out_features == 5


@pytest.mark.parametrize(
    "text",
    ["evil_module.Evil", "evil_folder.module", "evil.yaml", "name.txt", " os.system", "['os.system']", "__main__.f"],
)
def test_texts_that_stand_for_code(text, ran):
    assert [place for place, _ in names_of_code({"a": text}, "model")] in (["model.a"], ["model.a.0"])
    assert not ran.exists()


@pytest.mark.parametrize("text", ["evil_folder.nothing", "a b.c", "a: [", "2026-02-31", "", "~nobody/x", "x" * 5000])
def test_texts_that_do_not(text, ran):
    assert list(names_of_code({"a": text}, "model")) == []


def test_datamodules_are_loaded_as_data_alone(ran, tmp_path):
    save(tmp_path / "whole.ckpt", {"size": 7}, "datamodule_hyper_parameters", by_command_line=False)
    save(tmp_path / "named.ckpt", {"net": EVILS["name"]}, "datamodule_hyper_parameters")
    save(tmp_path / "evil.ckpt", {"size": Payload(ran)}, "datamodule_hyper_parameters", by_command_line=False)
    with served(tmp_path) as server:
        for place in (tmp_path, server):
            assert Data.load_from_checkpoint(f"{place}/whole.ckpt").size == 7
            with pytest.raises(CheckpointError, match=r"was not loaded: it refers to posix\.mkdir"):
                Data.load_from_checkpoint(f"{place}/evil.ckpt")
            with pytest.raises(CheckpointError, match=r"sets hyper_parameters\.net to 'evil_module\.Evil'"):
                Data.load_from_checkpoint(f"{place}/named.ckpt")
    assert not ran.exists()


class Student(FrozenTeacherMixin, DistillationMixin, Tiny):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters()


def test_a_checkpoint_does_not_say_what_the_teacher_is_made_by(ran, tmp_path):
    hparams = {"frozen_teacher_class": "evil_module.Evil", "distillation_weight": 1.0}
    path = save(tmp_path / "a.ckpt", hparams, by_command_line=False, cls=Student)
    loaded = Student.load_from_checkpoint(path)
    assert torch.equal(loaded(torch.ones(2, 4)), loaded.network(torch.ones(2, 4)))  # to predict needs no teacher
    with pytest.raises(InvalidValueError, match=r"A checkpoint says that frozen_teacher_class is 'evil_module\.Evil'"):
        fit(loaded, batches(1))
    assert not ran.exists()
    fit(Student.load_from_checkpoint(path, frozen_teacher_class="tests.mixins.distillation.teachers.plain"), batches(1))
    with pytest.raises(InvalidValueError, match="the teacher's output is"):
        fit(Student.load_from_checkpoint(path, frozen_teacher_class="evil_module.Evil"), batches(1))
    assert ran.exists()
