import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lightning_tuning
from lightning_tuning import EMATeacherMixin, FrozenTeacherMixin, WeightEMA, load_exported, read_metadata
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.errors import CheckpointError, InvalidValueError
from lightning_tuning.export import export
from tests.cli.toy import ToyData, ToyModel
from tests.helpers_checkpoints import flip


class Taught(EMATeacherMixin, ToyModel):
    """With a teacher."""


class Frozen(FrozenTeacherMixin, ToyModel):
    """Whose argument is the name of code."""


def fit(path, net, *callbacks, weights_only=False):
    trainer = Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(net, datamodule=ToyData())
    trainer.save_checkpoint(path, weights_only=weights_only)
    return torch.load(path, weights_only=True)


@pytest.fixture
def averaged(tmp_path):
    """A checkpoint of a module with a teacher and an average of its weights."""
    return fit(tmp_path / "a.ckpt", Taught(lr=0.3, ema_teacher_decay=0.5, ema_teacher_evaluates=False), WeightEMA(0.9))


def weights_of(content, kind):
    stored = content["state_dict"]
    if kind == "raw":
        (part,) = [part["raw"] for part in content["callbacks"].values() if "raw" in part]
        return part["layer.weight"]
    return stored["ema_teacher.layer.weight" if kind == "teacher" else "layer.weight"]


@pytest.mark.parametrize("kind", ["stored", "raw", "average", "teacher"])
def test_each_kind_of_weights(kind, averaged, tmp_path):
    export(str(tmp_path / "a.ckpt"), str(tmp_path / "out" / "model.safetensors"), kind)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == {"layer.weight", "layer.bias"}
    assert torch.equal(found["layer.weight"], weights_of(averaged, kind))
    others = {name: weights_of(averaged, name) for name in ("raw", "average", "teacher")}
    assert len({tuple(value.flatten().tolist()) for value in others.values()}) == 3


def test_what_stands_beside_the_weights(averaged, tmp_path):
    source = str(tmp_path / "a.ckpt")
    out = export(source, str(tmp_path / "m.safetensors"), "average")
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["lightning_tuning"]) == read_metadata(out)
    metadata = read_metadata(out)
    assert metadata["class"] == "tests.test_export.Taught"
    assert metadata["arguments"]["lr"] == 0.3
    assert metadata["arguments"]["ema_teacher_decay"] == 0.5
    assert (metadata["weights"], metadata["source"], metadata["global_step"]) == ("average", source, 6)
    assert metadata["versions"]["lightning_tuning"] == lightning_tuning.__version__
    assert metadata["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(("kind", "evaluates", "told"), [("raw", True, 1), ("raw", False, 0), ("teacher", True, 0)])
def test_who_was_validated_is_said_where_another_is_written(kind, evaluates, told, tmp_path):
    fit(tmp_path / "a.ckpt", Taught(lr=0.3, ema_teacher_decay=0.5, ema_teacher_evaluates=evaluates))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(str(tmp_path / "a.ckpt"), str(tmp_path / "m.safetensors"), kind)
    assert [str(w.message) for w in caught] == told * [
        "The student's weights are written (raw). What was validated and tested is the EMA teacher: write "
        "--weights=teacher for it."
    ]


@pytest.mark.parametrize("kind", ["average", "teacher"])
def test_it_is_loaded_again(kind, averaged, tmp_path):
    out = export(str(tmp_path / "a.ckpt"), str(tmp_path / "m.safetensors"), kind)
    x = torch.randn(5, 2)
    for cls, arguments in ((Taught, {}), (ToyModel, {"width": 2})):
        net = load_exported(out, cls, **arguments) if cls is Taught else _bare(out, arguments)
        assert not net.training
        expected = torch.nn.functional.linear(x, weights_of(averaged, kind), net.layer.bias)
        assert torch.equal(net(x), expected)


def _bare(path, arguments):
    """A class without the techniques takes no arguments of theirs."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'ema_teacher"):
        load_exported(path, ToyModel, **arguments)
    net = ToyModel(**arguments)
    net.load_state_dict(load_file(path))
    return net.eval()


def test_an_argument_may_be_replaced(averaged, tmp_path):
    out = export(str(tmp_path / "a.ckpt"), str(tmp_path / "m.safetensors"))
    assert load_exported(out, Taught).lr == 0.3
    assert load_exported(out, Taught, lr=0.7).lr == 0.7
    with pytest.raises(CheckpointError, match=r"m\.safetensors does not fit Taught: .*size mismatch for layer\.weight"):
        load_exported(out, Taught, width=3)


def test_weights_that_are_not_there(tmp_path):
    fit(tmp_path / "plain.ckpt", ToyModel())
    fit(tmp_path / "alone.ckpt", ToyModel(), weights_only=True)
    for name, kind, message in (
        ("plain", "teacher", r"plain\.ckpt has no EMA teacher"),
        ("plain", "average", r"plain\.ckpt has no average beside the trained weights"),
        ("alone", "raw", r"alone\.ckpt has weights alone and does not say which"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export(str(tmp_path / f"{name}.ckpt"), str(tmp_path / "m.safetensors"), kind)
    assert not (tmp_path / "m.safetensors").exists()
    export(str(tmp_path / "plain.ckpt"), str(tmp_path / "m.safetensors"), "raw")
    flip(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        export(str(tmp_path / "plain.ckpt"), str(tmp_path / "n.safetensors"))


def test_tied_weights_are_written_twice(tmp_path):
    weight = torch.arange(4.0)
    torch.save({"state_dict": {"a": weight, "b": weight, "c": weight[::2]}}, tmp_path / "a.ckpt")
    out = export(str(tmp_path / "a.ckpt"), str(tmp_path / "m.safetensors"))
    found = load_file(out)
    assert {key: value.tolist() for key, value in found.items()} == {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [0, 2]}


@pytest.mark.parametrize("argument", ["evil_export.f", {"class_path": "evil_export.F"}, {"class_path": "os.system"}])
def test_nothing_in_the_file_is_imported(argument, tmp_path, monkeypatch):
    (tmp_path / "evil_export.py").write_text("raise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    metadata = {"class": "evil_export.Net", "arguments": {"lr": 0.1, "frozen_teacher_class": argument}}
    net = Frozen()
    save_file(net.state_dict(), tmp_path / "m.safetensors", {"lightning_tuning": json.dumps(metadata)})
    with pytest.raises(InvalidValueError, match=r"Give it: load_exported\(path, Frozen, frozen_teacher_class=\.\.\.\)"):
        load_exported(tmp_path / "m.safetensors", Frozen)
    assert "evil_export" not in sys.modules
    assert load_exported(tmp_path / "m.safetensors", Frozen, frozen_teacher_class=None).lr == 0.1


def test_foreign_files(tmp_path):
    (tmp_path / "text").write_text("no")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("text", "other.safetensors", "none"):
        with pytest.raises(CheckpointError, match=f"{name} is no file of lightning-tuning export"):
            load_exported(tmp_path / name, ToyModel)


def test_the_command(averaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--ckpt_path=a.ckpt", "--weights=teacher", "--out=t.safetensors"]) == 0
    assert capsys.readouterr().out == "Written: t.safetensors\n"
    assert read_metadata("t.safetensors")["weights"] == "teacher"
    assert main(["export", "--ckpt_path=a.ckpt", "--out=t.safetensors"]) == 2
    message = "t.safetensors is there already. Write another name as --out, or --overwrite=true."
    assert capsys.readouterr().err == f"lightning-tuning: {message}\n"
    assert read_metadata("t.safetensors")["weights"] == "teacher"
    assert main(["export", "--ckpt_path=a.ckpt", "--out=t.safetensors", "--overwrite=true"]) == 0
    assert read_metadata("t.safetensors")["weights"] == "stored"
    capsys.readouterr()
    assert main(["export", "--ckpt_path=none.ckpt"]) == 2
    assert capsys.readouterr().err == "lightning-tuning: There is no checkpoint none.ckpt.\n"
    assert main(["export", "--ckpt_path=a.ckpt", "--weights=techer"]) == 2
    assert "expected one of 'stored', 'raw', 'average', 'teacher'; got techer" in capsys.readouterr().err
    assert not Path("model.safetensors").exists()


def test_a_callback_of_the_users_with_a_state_of_that_name(averaged, tmp_path):
    path = tmp_path / "mine.ckpt"
    torch.save({**averaged, "callbacks": {"Mine": {"raw": 5}, **averaged["callbacks"]}}, path)
    state = load_file(export(str(path), str(tmp_path / "raw.safetensors"), "raw"))
    assert torch.equal(state["layer.weight"], weights_of(averaged, "raw"))


def test_a_header_without_arguments(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", {"lightning_tuning": '{"arguments": 3}'})
    with pytest.raises(CheckpointError, match=r"is no file of lightning-tuning export: its arguments are none"):
        load_exported(tmp_path / "a.safetensors", ToyModel)
