import copy
import pickle

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_tuning import (
    DistillationMixin,
    EMATeacherMixin,
    FeatureDistillationMixin,
    FixMatchMixin,
    FrozenTeacherMixin,
    RDropMixin,
)
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.mixins.inner_pass import inner_pass
from tests.mixins.tiny import assert_same, batches, deep, fit, smooth, streams
from tests.numerics import array, cross_entropy, one_hot

from . import teachers
from .teachers import PATH, SEEN
from .test_distillation import Noting


class Student(Noting):
    """Takes no arguments, so that checkpoints load."""

    def __init__(self, make=smooth):
        super().__init__(make())


class Net(FrozenTeacherMixin, FeatureDistillationMixin, Student):
    pass


class Several(FrozenTeacherMixin, DistillationMixin, FeatureDistillationMixin, Student):
    pass


class Moving(EMATeacherMixin, FeatureDistillationMixin, Student):
    pass


PLAIN = {"frozen_teacher_class": f"{PATH}.plain"}
WIDE = {"frozen_teacher_class": f"{PATH}.wide"}
HIDDEN = {"feature_distillation_layers": "network.0=network.0"}


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()
    torch.manual_seed(0)


def test_without_projector_it_is_the_mean_squared_difference_of_the_layers():
    layers = " network.0 , network.1 = network.0 "
    settings = {"feature_distillation_layers": layers, "feature_distillation_projector": False}
    net = Net(feature_distillation_weight=0.7, **settings, **PLAIN)
    keys, before = set(net.state_dict()), copy.deepcopy(net.network)
    data = batches(1)
    fit(net, data)
    x, y = data[0]
    teacher = teachers.plain().network
    ours, theirs = array(before[0](x)), array(teacher[0](x))
    term = ((ours - theirs) ** 2).mean() / 2 + ((array(before[1](before[0](x))) - theirs) ** 2).mean() / 2
    expected = cross_entropy(array(before(x)), one_hot(y.numpy(), 3)) + 0.7 * term
    assert net.losses[0].item() == pytest.approx(expected, rel=1e-5)
    assert set(net.state_dict()) == keys
    assert len(SEEN) == 1


def test_a_step_is_that_of_the_formula():
    """Weights, projector included, against the same step written out."""
    net = Net(feature_distillation_weight=0.7, **HIDDEN, **WIDE)
    reference, projector, teacher = copy.deepcopy(net.network), nn.Linear(8, 12), teachers.wide().network
    with torch.no_grad():
        projector.weight.copy_(torch.eye(12, 8))
        projector.bias.zero_()
    optimizer = torch.optim.SGD([*reference.parameters(), *projector.parameters()], lr=0.1, momentum=0.9)
    data = batches(4)
    fit(net, data)
    for x, y in data:
        hidden = reference[0](x)
        term = (projector(hidden) - teacher[0](x).detach()).pow(2).sum() / (8 * 12)
        loss = nn.functional.cross_entropy(reference[2](reference[1](hidden)), y) + 0.7 * term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(net.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    (made,) = net.feature_distillation_projectors
    torch.testing.assert_close(made.weight, projector.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made.bias, projector.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", ["network.0", "network.2=network.0"])
def test_maps_are_projected_by_a_convolution(layers):
    def make():
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(27, 3))

    net = Net(make, feature_distillation_layers=layers, frozen_teacher_class=f"{PATH}.images")
    fit(net, batches(2, shape=(2, 5, 5)))
    (projector,) = net.feature_distillation_projectors
    assert isinstance(projector, nn.Conv2d)
    assert projector.weight.shape == (4, 6 if layers == "network.0" else 3, 1, 1)
    assert not torch.equal(projector.weight, nn.init.dirac_(torch.empty_like(projector.weight)))


def test_the_teacher_answers_once_for_all():
    fit(Several(**HIDDEN, **PLAIN), batches(4))
    assert len(SEEN) == 4


def test_no_hook_stays_and_copies_work():
    net = Net(**HIDDEN, **PLAIN)
    fit(net, batches(2))
    assert not any(m._forward_hooks for m in net.modules())
    copied, x = pickle.loads(pickle.dumps(copy.deepcopy(net))), torch.randn(3, 4)
    assert torch.equal(copied(x), net(x))


def test_the_student_loads_without_the_teacher(tmp_path):
    torch.save(teachers.wide().state_dict(), tmp_path / "teacher.pt")
    net = Net(frozen_teacher_checkpoint=str(tmp_path / "teacher.pt"), **HIDDEN, **WIDE)
    fit(net, batches(3)).save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "teacher.pt").unlink()
    loaded = Net.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert_same(loaded.state_dict(), net.state_dict())
    assert "feature_distillation_projectors.0.weight" in loaded.state_dict()


def test_with_an_ema_teacher(tmp_path):
    net = Moving(ema_teacher_decay=0.5, **HIDDEN)
    fit(net, batches(3)).save_checkpoint(tmp_path / "a.ckpt")
    assert net.feature_distillation_projectors[0].weight.shape == (8, 8)
    loaded = Moving.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert_same(loaded.state_dict(), net.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    resumed = Moving(ema_teacher_decay=0.5, **HIDDEN)
    fit(resumed, batches(3), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    straight = Moving(ema_teacher_decay=0.5, **HIDDEN)
    torch.manual_seed(0)
    straight = Moving(ema_teacher_decay=0.5, **HIDDEN)
    fit(straight, batches(3), max_epochs=2)
    assert_same(resumed.state_dict(), straight.state_dict())


def test_unlabelled_inputs_that_go_along_do_not_count():
    class Riding(FrozenTeacherMixin, FixMatchMixin, FeatureDistillationMixin, Student):
        pass

    settings = {"feature_distillation_projector": False, **HIDDEN, **PLAIN}
    net = Riding(fixmatch_threshold=0.0, fixmatch_weight=1e-9, **settings)
    before = copy.deepcopy(net.network)
    data = streams(1)
    fit(net, data)
    x, y = data[0]["labeled"]
    teacher = teachers.plain().network
    term = ((array(before[0](x)) - array(teacher[0](x))) ** 2).mean()
    expected = cross_entropy(array(before(x)), one_hot(y.numpy(), 3)) + term
    assert net.losses[0].item() == pytest.approx(expected, rel=1e-5)


class Attacked(Net):
    """With more forwards around the host's own one."""

    def compute_loss(self, logits, target):
        if self._trainer is not None:
            with inner_pass(self):
                self(torch.zeros(8, 4))
            self(torch.zeros(8, 4))
        return super().compute_loss(logits, target)


def test_later_forwards_of_a_step_do_not_count():
    losses = []
    for cls in (Net, Attacked):
        torch.manual_seed(0)
        net = cls(**HIDDEN, **PLAIN)
        fit(net, batches(2))
        losses.append(torch.stack(net.losses))
    assert torch.equal(*losses)


def test_both_halves_of_r_drop():
    class Repeated(FrozenTeacherMixin, RDropMixin, FeatureDistillationMixin, Student):
        pass

    net = Repeated(deep, rdrop_weight=0.1, **HIDDEN, **PLAIN)
    fit(net, batches(2))
    assert [len(x) for x in SEEN] == [16, 16]


def refused(net, message, data=None):
    with pytest.raises(InvalidValueError, match=message):
        fit(net, batches(1) if data is None else data)


def test_layers_that_do_not_exist():
    refused(
        Net(feature_distillation_layers="netwrok.0", **PLAIN), "names 'netwrok.0', which is no layer of the student"
    )
    refused(
        Net(feature_distillation_layers="network.0=network.7", **PLAIN), "'network.7', which is no layer of the teacher"
    )


def test_a_layer_whose_width_nobody_knows():
    refused(
        Net(feature_distillation_layers="network.1", **PLAIN), "cannot tell the width of the layer 'network.1', a Tanh"
    )


def test_shapes_that_differ():
    message = (
        r"the student's layer 'network\.0' returns \[8, 8\], the teacher's 'network\.0' \[8, 12\]\. Name layers of the "
        r"same size in feature_distillation_layers, or set feature_distillation_projector=true\."
    )
    refused(Net(feature_distillation_projector=False, **HIDDEN, **WIDE), message)


def test_maps_of_another_size():
    def make():
        return nn.Sequential(nn.Conv2d(2, 6, 2), nn.Flatten(), nn.Linear(96, 3))

    net = Net(make, feature_distillation_layers="network.0", frozen_teacher_class=f"{PATH}.images")
    message = r"returns \[8, 6, 4, 4\], projected \[8, 4, 4, 4\], the teacher's 'network\.0' \[8, 4, 3, 3\]"
    refused(net, message, batches(1, shape=(2, 5, 5)))


class Unused(Student):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 8)


class UnusedNet(FrozenTeacherMixin, FeatureDistillationMixin, Unused):
    pass


def test_a_layer_that_is_not_run():
    net = UnusedNet(feature_distillation_layers="unused=network.0", **PLAIN)
    refused(net, "the student's layer 'unused' was not run in this step")


@pytest.mark.parametrize("layers", ["a=b=c", "a,,b", "a=", ","])
def test_a_text_that_names_no_layers(layers):
    with pytest.raises(InvalidValueError, match="write names of layers with commas between"):
        Net(feature_distillation_layers=layers)


def test_metrics_are_no_layers_to_choose():
    net = Net(**PLAIN)
    net.accuracy = MeanMetric()
    message = FeatureDistillationMixin.no_effect(net)
    assert "network.1" in message
    assert "accuracy" not in message


def test_no_layers_and_no_teacher():
    with pytest.raises(NoEffectError, match=r"names no layer of Student. It has 'network\.0', 'network\.1'"):
        fit(Net(**PLAIN), batches(1))
    with pytest.raises(NoEffectError, match="Student has no teacher but itself"):
        fit(Net(**HIDDEN), batches(1))
