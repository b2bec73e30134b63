import copy
import importlib
import pickle
import re

import pytest
import torch
from torch import nn

from lightning_tuning import (
    AdversarialMixin,
    DistillationMixin,
    EMATeacherMixin,
    FrozenTeacherMixin,
    ImageClassifier,
    TRADESMixin,
)
from lightning_tuning.errors import CompositionError, InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, assert_same, batches, deep, fit, loader, smooth

from . import teachers
from .teachers import PATH, SEEN


class Old(DistillationMixin, Tiny):
    """What a teacher may have been trained as."""

    def __init__(self, **kwargs):
        super().__init__(deep(), **kwargs)


class Plain(Tiny):
    """A module without mixins."""

    def __init__(self):
        super().__init__(deep())


class Net(FrozenTeacherMixin, DistillationMixin, Plain):
    pass


class Both(EMATeacherMixin, FrozenTeacherMixin, DistillationMixin, Plain):
    pass


class Other(FrozenTeacherMixin, DistillationMixin, Tiny):
    pass


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def saved(module, path):
    """The checkpoint of a trained module."""
    fit(module, batches(3)).save_checkpoint(path)
    return str(path)


def student(**kwargs):
    torch.manual_seed(3)
    return Net(**kwargs)


def answers(net, x):
    """What the frozen teacher says."""
    return net.pseudo_logits(x)


def test_a_checkpoint_names_its_class(tmp_path):
    torch.manual_seed(0)
    old = Old(distillation_weight=0.0)
    path = saved(old, tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["lightning_tuning_class"] == f"{__name__}.Old"
    net, x = student(frozen_teacher_checkpoint=path), torch.randn(5, 4)
    assert type(net.teacher_module()) is Old
    assert torch.equal(answers(net, x), old.eval()(x))


@pytest.mark.parametrize("settings", [{}, {"sam_rho": 0.1, "ema_teacher_decay": 0.5}])
def test_the_checkpoint_of_a_ready_host(settings, tmp_path):
    torch.manual_seed(0)
    host = ImageClassifier(network="mlp", image_size=2, num_classes=3, **settings)
    path = str(tmp_path / "a.ckpt")
    fit(host, batches(3, shape=(1, 2, 2))).save_checkpoint(path)
    assert torch.load(path, weights_only=True)["lightning_tuning_class"].endswith("image_classifier.ImageClassifier")
    net, x = student(frozen_teacher_checkpoint=path), torch.randn(5, 1, 2, 2)
    assert torch.equal(answers(net, x), host.eval()(x))


def test_a_checkpoint_that_names_no_class_is_of_the_modules_own(tmp_path):
    torch.manual_seed(0)
    plain = Plain()
    path = saved(plain, tmp_path / "a.ckpt")
    assert "lightning_tuning_class" not in torch.load(path, weights_only=True)
    net, x = student(frozen_teacher_checkpoint=path), torch.randn(5, 4)
    assert type(net.teacher_module()) is Plain
    assert torch.equal(answers(net, x), plain.eval()(x))
    assert torch.equal(
        answers(student(frozen_teacher_checkpoint=path, frozen_teacher_class=f"{__name__}.Old"), x), plain(x)
    )


@pytest.mark.parametrize("nested", [True, False])
def test_a_function_with_the_weights_of_a_file(nested, tmp_path):
    network = teachers.unseeded()
    state = network.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "a.pt")
    net, x = (
        student(frozen_teacher_checkpoint=str(tmp_path / "a.pt"), frozen_teacher_class=f"{PATH}.unseeded"),
        (torch.randn(5, 4)),
    )
    assert torch.equal(answers(net, x), network(x))


class Looks(Net):
    """Looks at the teacher in each step."""

    def compute_loss(self, logits, target):
        loss = super().compute_loss(logits, target)
        teacher = self.teacher_module()
        assert not any(m.training for m in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())
        assert {p.dtype for p in teacher.parameters()} == {next(self.parameters()).dtype}
        self.seen_teacher = teacher.state_dict()
        return loss


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_it_is_frozen_and_no_part_of_the_module(precision):
    net = Looks(frozen_teacher_class=f"{PATH}.with_dropout")
    keys = set(Plain().state_dict())
    data = batches(3, dtype=torch.float64 if precision == "64-true" else torch.float32)
    trainer = fit(net, data, precision=precision)
    start = teachers.with_dropout().eval()
    expected = start.double() if precision == "64-true" else start
    if precision != "bf16-true":
        assert_same(net.seen_teacher, expected.state_dict())
    assert set(net.state_dict()) == keys
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == len(list(Plain().parameters()))
    assert not any(isinstance(m, teachers.Noting) for m in net.modules())
    assert all(x.grad_fn is None for x in SEEN)


def test_its_answer_has_no_graph_and_no_dropout():
    net, x = student(frozen_teacher_class=f"{PATH}.with_dropout"), torch.randn(5, 4, requires_grad=True)
    first, second = answers(net, x), answers(net, x)
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert torch.equal(first, teachers.with_dropout().eval()(x))


def test_making_it_draws_no_random_number_of_the_run():
    net = student(frozen_teacher_class=f"{PATH}.unseeded")
    torch.manual_seed(7)
    net.teacher_module()
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_copies_and_pickles_go_without_it():
    net, x = student(frozen_teacher_class=f"{PATH}.plain"), torch.randn(5, 4)
    said = answers(net, x)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert copied._frozen_teacher.module is None
        assert torch.equal(answers(copied, x), said)
    fit(net, batches(2))
    assert net._frozen_teacher.module is None


def test_a_run_is_resumed_with_the_same_weights_only(tmp_path):
    path = str(tmp_path / "teacher.pt")
    arguments = {"frozen_teacher_checkpoint": path, "frozen_teacher_class": f"{PATH}.unseeded"}
    torch.manual_seed(0)
    network = teachers.unseeded()
    torch.save(network.state_dict(), path)
    fit(student(**arguments), batches(3)).save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["frozen_teacher"]
    assert kept["name"] == path
    assert re.fullmatch("[0-9a-f]{64}", kept["sha256"])
    fit(student(**arguments), batches(3), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    with torch.no_grad():
        network.network[2].bias[1] += 1e-6
    torch.save(network.state_dict(), path)
    net = student(**arguments)
    with pytest.raises(InvalidValueError, match=r"The weights of the teacher .*teacher\.pt are not those that the"):
        fit(net, batches(3), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert not net.batches
    # A new run from these weights may have another teacher.
    loaded = Net.load_from_checkpoint(tmp_path / "a.ckpt", frozen_teacher_class=f"{PATH}.unseeded")
    fit(loaded, batches(3))
    assert len(loaded.batches) == 3


def test_the_file_is_not_needed_to_predict(tmp_path):
    path = saved(Plain(), tmp_path / "teacher.ckpt")
    net = student(frozen_teacher_checkpoint=path)
    trainer = fit(net, batches(3))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    loaded, x = Net.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True), torch.randn(5, 4)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    trainer.validate(loaded, loader(batches(1)), verbose=False)
    with pytest.raises(InvalidValueError, match="there is no such file"):
        fit(loaded, batches(1))


def test_an_exchanged_file_is_read_again_at_the_next_fit(tmp_path):
    path = saved(Plain(), tmp_path / "teacher.ckpt")
    net = student(frozen_teacher_checkpoint=path)
    fit(net, batches(1))
    first = net._frozen_teacher_mark
    saved(Plain(), tmp_path / "teacher.ckpt")
    fit(net, batches(1))
    assert net._frozen_teacher_mark != first


WRONG = {
    "there is no such file": {"frozen_teacher_checkpoint": "/nowhere/teacher.ckpt"},
    "cannot be imported: No module named 'nowhere'": {"frozen_teacher_class": "nowhere.Teacher"},
    "has no attribute 'Teachr'": {"frozen_teacher_class": f"{PATH}.Teachr"},
    "which cannot be imported: it names no module": {"frozen_teacher_class": "Teacher"},
    "cannot be called without arguments: with_an_argument": {"frozen_teacher_class": f"{PATH}.with_an_argument"},
    "returned a int; it must return an nn.Module": {"frozen_teacher_class": f"{PATH}.nothing"},
    "has 5 classes, Plain has 3": {"frozen_teacher_class": f"{PATH}.five_classes_and_says_so"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_a_teacher_is_refused_before_the_first_step(message):
    net = student(**WRONG[message])
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        fit(net, batches(1))
    assert not net.batches


def test_a_number_of_classes_that_only_the_answer_tells():
    with pytest.raises(InvalidValueError) as caught:
        fit(student(frozen_teacher_class=f"{PATH}.five_classes"), batches(1))
    assert str(caught.value) == (
        "DistillationMixin: the teacher's output is [8, 5], that of Plain [8, 3]. Teacher and student need the same "
        "classes in the same order."
    )


class Harm:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_do_not_fit(tmp_path, capsys):
    path = str(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "harm": Harm()}, path)
    with pytest.raises(InvalidValueError, match="cannot be read without executing code"):
        fit(student(frozen_teacher_checkpoint=path), batches(1))
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], path)
    with pytest.raises(InvalidValueError, match="holds a list; it must be a Lightning checkpoint or a state dict"):
        fit(student(frozen_teacher_checkpoint=path), batches(1))
    saved(Tiny(smooth()), path)  # Plain has other layers
    with pytest.raises(InvalidValueError, match=r"cannot be loaded as Plain: Error\(s\) in loading state_dict"):
        fit(student(frozen_teacher_checkpoint=path), batches(1))
    torch.save({"state_dict": {}, "lightning_tuning_class": "torch.nn.Linear"}, path)
    with pytest.raises(InvalidValueError, match=r"names 'torch\.nn\.Linear', which is no LightningModule"):
        fit(student(frozen_teacher_checkpoint=path), batches(1))
    torch.save({"state_dict": {}, "lightning_tuning_class": "gone.Net"}, path)
    with pytest.raises(InvalidValueError, match=r"was saved from 'gone\.Net', which is not imported"):
        fit(student(frozen_teacher_checkpoint=path), batches(1))


def test_a_checkpoint_does_not_say_what_is_imported(tmp_path, monkeypatch):
    path = str(tmp_path / "a.ckpt")
    folder = tmp_path / "evil_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("evil_package")
    for name in ("evil_package.evil.Net", "evil_package.evil"):
        torch.save({"state_dict": {}, "lightning_tuning_class": name}, path)
        with pytest.raises(InvalidValueError, match=rf"may not say what is. Write frozen_teacher_class='{name}', if"):
            fit(student(frozen_teacher_checkpoint=path), batches(1))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InvalidValueError):  # the caller may
        fit(student(frozen_teacher_checkpoint=path, frozen_teacher_class="evil_package.evil.Net"), batches(1))
    assert (tmp_path / "ran").exists()


def test_with_an_ema_teacher_one_of_them_has_to_give_the_labels():
    with pytest.raises(CompositionError, match=r"would both give the labels. Write ema_teacher_labels=False, so that"):
        fit(Both(frozen_teacher_class=f"{PATH}.plain"), batches(1))
    net = Both(frozen_teacher_class=f"{PATH}.plain", ema_teacher_labels=False)
    fit(net, batches(2))
    assert len(SEEN) == 2
    x = torch.randn(5, 4)
    assert torch.equal(answers(net, x), teachers.plain()(x))
    assert not any(isinstance(m, teachers.Noting) for m in net.ema_teacher.modules())
    assert net.ema_teacher._frozen_teacher.module is None


def test_alone_it_has_no_effect():
    class Alone(FrozenTeacherMixin, Plain):
        pass

    with pytest.raises(NoEffectError, match=r"no technique of Plain asks a teacher. Add DistillationMixin"):
        fit(Alone(frozen_teacher_class=f"{PATH}.plain"), batches(1))


@pytest.mark.parametrize(
    ("technique", "asks", "idle"),
    [
        (TRADESMixin, {"trades_reference": "teacher"}, {"trades_reference": "student"}),
        (AdversarialMixin, {"adversarial_target": "consistency"}, {"adversarial_target": "labels"}),
    ],
)
def test_adversarial_techniques_may_be_all_that_asks_it(technique, asks, idle):
    net = type("Net", (FrozenTeacherMixin, technique, Plain), {})
    fit(net(frozen_teacher_class=f"{PATH}.plain", **asks), batches(1))
    assert SEEN
    with pytest.raises(NoEffectError, match="no technique of Plain asks a teacher"):
        fit(net(frozen_teacher_class=f"{PATH}.plain", **idle), batches(1))


def test_off_it_leaves_the_labels_to_the_student():
    net, x = Other(nn.Linear(4, 3), distillation_weight=0.0), torch.randn(5, 4)
    assert net.teacher_module() is None
    assert torch.equal(answers(net, x), net.network(x))


def test_a_class_that_is_no_text():
    with pytest.raises(InvalidValueError, match=r"frozen_teacher_class is <class .*Linear'>; write its import path"):
        student(frozen_teacher_class=torch.nn.Linear)
