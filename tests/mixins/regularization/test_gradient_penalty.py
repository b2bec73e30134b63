import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_tuning import (
    ConfidencePenaltyMixin,
    FloodingMixin,
    GradientPenaltyMixin,
    LabelSmoothingMixin,
    RDropMixin,
)
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, batches, convolution, fit, linear, smooth
from tests.numerics import array, one_hot, softmax


class Net(GradientPenaltyMixin, Tiny):
    pass


class FloodedNet(GradientPenaltyMixin, FloodingMixin, Tiny):
    pass


class Softened(LabelSmoothingMixin, GradientPenaltyMixin, Tiny):
    pass


class SoftenedInside(GradientPenaltyMixin, LabelSmoothingMixin, Tiny):
    pass


class Unsure(GradientPenaltyMixin, ConfidencePenaltyMixin, Tiny):
    pass


class DoubledNet(RDropMixin, GradientPenaltyMixin, Tiny):
    pass


PENALTIES = {"r1": lambda norms: (norms**2).mean() / 2, "wgan_gp": lambda norms: ((norms - 1) ** 2).mean()}


def sample_losses(network, x, ids):
    with torch.no_grad():
        return array(F.cross_entropy(network(x), ids, reduction="none"))


def sample_sums(network, x, ids):
    with torch.no_grad():
        return array(network(x).flatten(1).sum(1))


def gradient_norms(values_of, network, x, ids):
    """Norm of each sample's input gradient by central differences, one input element after the other."""
    squares = np.zeros(len(x))
    for index in np.ndindex(*x.shape[1:]):
        step = torch.zeros_like(x)
        step[(slice(None), *index)] = 1e-5
        squares += ((values_of(network, x + step, ids) - values_of(network, x - step, ids)) / 2e-5) ** 2
    return np.sqrt(squares)


SEQUENCE = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3))


@pytest.mark.parametrize(("network", "shape"), [(smooth(), (4,)), (SEQUENCE, (3, 4)), (convolution(), (2, 5, 5))])
@pytest.mark.parametrize("form", PENALTIES)
@pytest.mark.parametrize(("of", "values_of"), [("loss", sample_losses), ("output", sample_sums)])
def test_loss(network, shape, form, of, values_of):
    net = Net(network.eval().double(), gradient_penalty_weight=0.5, gradient_penalty_form=form, gradient_penalty_of=of)
    x, ids = batches(1, size=4, shape=shape, dtype=torch.float64)[0]
    norms = gradient_norms(values_of, network, x, ids)
    expected = sample_losses(network, x, ids).mean() + 0.5 * PENALTIES[form](norms)
    assert net.training_step((x, ids), 0).item() == pytest.approx(expected, rel=1e-7)


def test_of_a_linear_network_in_closed_form():
    net = Net(linear().double(), gradient_penalty_weight=0.5)
    x, ids = batches(1, dtype=torch.float64)[0]
    loss = net.training_step((x, ids), 0).item()
    errors = softmax(array(net.network(x))) - one_hot(ids.numpy(), 3)
    norms = np.sqrt(((errors @ array(net.network.weight)) ** 2).sum(1))
    assert loss == pytest.approx(sample_losses(net.network, x, ids).mean() + 0.25 * (norms**2).mean(), rel=1e-12)


def test_dense_loss_is_the_mean_over_a_samples_positions():
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    net = Net(network, gradient_penalty_weight=0.5)
    x, ids = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randint(3, (3, 4, 4))

    def means(network, x, ids):
        return sample_losses(network, x, ids).mean((1, 2))

    norms = gradient_norms(means, network, x, ids)
    expected = means(network, x, ids).mean() + 0.25 * (norms**2).mean()
    assert net.training_step((x, ids), 0).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("form", PENALTIES)
@pytest.mark.parametrize("of", ["loss", "output"])
def test_gradient_is_that_of_the_whole_loss(form, of):
    net = Net(smooth().double(), gradient_penalty_weight=0.5, gradient_penalty_form=form, gradient_penalty_of=of)
    batch = batches(1, size=4, dtype=torch.float64)[0]
    net.training_step(batch, 0).backward()
    for p in net.parameters():
        for index in np.ndindex(*p.shape):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p[index] += step
                values.append(net.training_step(batch, 0).item())
                with torch.no_grad():
                    p[index] -= step
            gradient = 0.0 if p.grad is None else p.grad[index].item()
            assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def added(net, batch):
    loss = net.training_step(batch, 0).item()
    logits, target = net.logits[-1], net.targets[-1]
    return loss - F.cross_entropy(logits, target).item()


@pytest.mark.parametrize("cls", [Softened, SoftenedInside])
def test_of_a_loss_with_softened_targets_it_is_that_losss(cls):
    net = cls(linear().double(), label_smoothing_epsilon=0.3, gradient_penalty_weight=0.5)
    x, ids = batches(1, dtype=torch.float64)[0]
    ours = added(net, (x, ids))
    errors = softmax(array(net.network(x))) - (0.7 * one_hot(ids.numpy(), 3) + 0.1)
    assert ours == pytest.approx(0.25 * ((errors @ array(net.network.weight)) ** 2).sum(1).mean(), rel=1e-6)


def test_flooding_below_its_level_changes_nothing_in_it():
    network = smooth().double()
    batch = batches(1, dtype=torch.float64)[0]
    terms = []
    for level in (0.0, 9.0):
        net = FloodedNet(network, flooding_level=level, gradient_penalty_weight=0.5)
        loss = net.training_step(batch, 0).item()
        task = F.cross_entropy(network(batch[0]), batch[1]).item()
        terms.append(loss - (2 * level - task if level else task))
    assert terms[0] == pytest.approx(terms[1], rel=1e-9)
    assert terms[0] > 1e-4


def test_what_stands_right_of_it_belongs_to_the_loss():
    net = Unsure(smooth().double(), confidence_penalty_weight=0.4, gradient_penalty_weight=0.5)
    x, ids = batches(1, size=4, dtype=torch.float64)[0]

    def unsure(network, x, ids):
        p = softmax(array(network(x)))
        return sample_losses(network, x, ids) + 0.4 * (p * np.log(p)).sum(1)

    norms = gradient_norms(unsure, net.network, x, ids)
    expected = unsure(net.network, x, ids).mean() + 0.25 * (norms**2).mean()
    assert net.training_step((x, ids), 0).item() == pytest.approx(expected, rel=1e-7)


def test_of_a_doubled_batch_it_is_the_mean_over_both_halves():
    net = DoubledNet(linear().double(), rdrop_weight=0.7, gradient_penalty_weight=0.5)
    x, ids = batches(1, dtype=torch.float64)[0]
    errors = softmax(array(net.network(x))) - one_hot(ids.numpy(), 3)
    expected = 0.25 * ((errors @ array(net.network.weight)) ** 2).sum(1).mean()  # the halves agree without dropout
    assert added(net, (x, ids)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", PENALTIES)
def test_where_the_gradient_is_0_training_goes_on(form):
    network = linear()
    with torch.no_grad():
        network.weight.zero_()
    net = Net(network, gradient_penalty_weight=0.5, gradient_penalty_form=form)
    fit(net, batches(2))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_wgan_gp_pulls_the_norm_of_a_critics_gradient_to_1():
    norms = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        net = Net(
            smooth(),
            gradient_penalty_weight=weight,
            gradient_penalty_form="wgan_gp",
            gradient_penalty_of="output",
            lr=0.005,
        )
        fit(net, batches(1) * 150)
        norms.append(gradient_norms(sample_sums, net.network.double(), batches(1)[0][0].double(), None))
    assert abs(norms[1] - 1).mean() < 0.15 < abs(norms[0] - 1).mean()


def test_the_batch_stays_the_callers():
    net = Net(gradient_penalty_weight=0.5)
    x, ids = batches(1)[0]
    net.training_step((x, ids), 0).backward()
    assert not x.requires_grad
    assert x.grad is None
    assert net._gradient_penalty_inputs == net._gradient_penalty_terms == []


def test_a_dict_batch_whose_loss_comes_in_a_dict():
    class InDict(Tiny):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "seen": 1}

    class DictNet(GradientPenaltyMixin, InDict):
        pass

    net = DictNet(linear().double(), gradient_penalty_weight=0.5)
    x, ids = batches(1, dtype=torch.float64)[0]
    output = net.training_step(({"features": x, "mask": torch.ones_like(x)}, ids), 0)
    errors = softmax(array(net.network(x))) - one_hot(ids.numpy(), 3)
    slope = errors @ array(net.network.weight)
    penalty = (slope**2 + (slope * array(x)) ** 2).sum(1).mean() / 2
    assert output["seen"] == 1
    assert output["loss"].item() == pytest.approx(sample_losses(net.network, x, ids).mean() + 0.5 * penalty, rel=1e-12)


def test_fp16_agrees_with_float32():
    terms = []
    for precision in ("32-true", "16-mixed"):
        torch.manual_seed(0)
        net = Net(smooth(), gradient_penalty_weight=0.5, lr=0.0)
        made = fit(net, batches(2), precision=precision)
        terms.append(made.callback_metrics["train/gradient_penalty_epoch"].item())
    assert terms[1] == pytest.approx(terms[0], rel=1e-2)


def test_a_step_whose_input_gradient_overflows_is_skipped():
    net = Net(smooth(), gradient_penalty_weight=0.5, gradient_penalty_of="output")
    before = [p.clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    fit(net, batches(1), plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**21


def test_the_term_is_recorded_without_its_weight():
    net = Net(linear(), gradient_penalty_weight=0.5, lr=0.0)
    data = batches(2)
    made = fit(net, data)
    w = array(net.network.weight)
    errors = [softmax(array(net.network(x))) - one_hot(ids.numpy(), 3) for x, ids in data]
    expected = np.mean([((e @ w) ** 2).sum(1).mean() / 2 for e in errors])
    assert made.callback_metrics["train/gradient_penalty_epoch"].item() == pytest.approx(expected, rel=1e-5)


def test_validation_is_plain():
    net = Net(gradient_penalty_weight=0.5)
    data = batches(2)
    made = fit(net, data, val_data=data[:1])
    expected = F.cross_entropy(net(data[0][0]), data[0][1]).item()
    assert made.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_off_leaves_the_batch_alone():
    net = Net(gradient_penalty_weight=0.0)
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == F.cross_entropy(net.network(batch[0]), batch[1]).item()
    assert net.batches[0] is batch


def test_token_ids_have_no_gradient():
    net = Net(nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3)))
    with pytest.raises(InvalidValueError, match=r"^GradientPenaltyMixin takes gradients .+ torch\.int64"):
        net.training_step((torch.randint(9, (8, 4)), batches(1)[0][1]), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_penalty_weight": -1.0}, "gradient_penalty_weight is -1.0; it must be a number in [0, inf)."),
        (
            {"gradient_penalty_form": "r2"},
            "gradient_penalty_form is 'r2'. It must be one of 'r1', 'wgan_gp'.",
        ),
        (
            {"gradient_penalty_of": "los"},
            "gradient_penalty_of is 'los'; did you mean 'loss'? It must be one of 'loss', 'output'.",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError) as caught:
        Net(**arguments)
    assert str(caught.value) == message
