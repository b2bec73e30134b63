import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_tuning import FloodingMixin, GradientPenaltyMixin, JacobianMixin, MixupMixin, RDropMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import input_gradient as functional
from tests.contract.nets import loaders, make, trainer
from tests.contract.settings import ROWS
from tests.contract.test_contract import assert_close
from tests.contract.test_contract_ddp import fit_on_two_ranks
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit, linear, smooth
from tests.numerics import array


class Net(JacobianMixin, Tiny):
    pass


class DoubledNet(RDropMixin, JacobianMixin, FloodingMixin, Tiny):
    pass


class MixedNet(MixupMixin, JacobianMixin, Tiny):
    pass


class ClimbingNet(SAMMixin, JacobianMixin, Tiny):
    pass


class Both(JacobianMixin, GradientPenaltyMixin, Tiny):
    pass


class Swapped(GradientPenaltyMixin, JacobianMixin, Tiny):
    pass


def first_direction(like):
    """In place of random unit vectors: one and the same for every sample."""
    v = torch.arange(1, like.shape[1] + 1).to(like)
    return (v / v.norm()).expand_as(like)


@pytest.fixture
def fixed(monkeypatch):
    monkeypatch.setattr(functional, "unit_vectors", first_direction)


@pytest.fixture
def drawn(monkeypatch):
    """The unit vectors that are drawn, in order."""
    seen, draw = [], functional.unit_vectors

    def noted(like):
        seen.append(draw(like))
        return seen[-1]

    monkeypatch.setattr(functional, "unit_vectors", noted)
    return seen


def squared_slope(network, x, v):
    """``||v^T dz/dx||^2`` of each sample by central differences, one input element after the other."""
    total = np.zeros(len(x))
    for index in np.ndindex(*x.shape[1:]):
        step = torch.zeros_like(x)
        step[(slice(None), *index)] = 1e-5
        with torch.no_grad():
            slope = (network(x + step) - network(x - step)) / 2e-5
        total += array((slope * v).flatten(1).sum(1)) ** 2
    return total


def term(net, batch):
    """What the technique adds, without its weight."""
    return (net.training_step(batch, 0).item() - F.cross_entropy(net.network(batch[0]), batch[1]).item()) / 0.5


SEQUENCE = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3))
DENSE = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize(
    ("network", "shape", "outputs"),
    [(smooth(), (4,), 3), (SEQUENCE, (3, 4), 3), (convolution(), (2, 5, 5), 3), (DENSE, (2, 4, 4), 48)],
)
def test_term(network, shape, outputs, drawn):
    net = Net(network.eval().double(), jacobian_weight=0.5)
    x, ids = batches(1, size=4, shape=shape, dtype=torch.float64)[0]
    ids = torch.randint(3, (4, 4, 4)) if outputs == 48 else ids
    ours = term(net, (x, ids))
    v = drawn[0].reshape(net.logits[0].shape)
    assert ours == pytest.approx(outputs / 2 * squared_slope(network, x, v).mean(), rel=1e-7)


def test_one_value_a_sample_may_come_without_a_dimension_of_its_own():
    x = torch.randn(4, 3, requires_grad=True)
    assert functional.jacobian_penalty((5 * x).sum(1), [x]).item() == 37.5  # (25 + 25 + 25) / 2


def test_projections_are_averaged(drawn):
    net = Net(linear().double(), jacobian_weight=0.5, jacobian_projections=3)
    w = array(net.network.weight)
    ours = term(net, batches(1, dtype=torch.float64)[0])
    assert len(drawn) == 3
    expected = np.mean([((array(v) @ w) ** 2).sum(1).mean() for v in drawn])
    assert ours == pytest.approx(3 / 2 * expected, rel=1e-12)


def test_gradient_is_that_of_the_whole_loss(fixed):
    """Against central differences over each weight, which knows nothing of second derivatives."""
    net = Net(smooth().double(), jacobian_weight=0.5)
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
            assert p.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_of_a_dict_all_floating_tensors_count(drawn):
    net = Net(linear().double(), jacobian_weight=0.5)
    x, ids = batches(1, dtype=torch.float64)[0]
    mask = torch.rand(8, 4, dtype=torch.float64)
    ours = net.training_step(({"features": x, "mask": mask, "position": torch.arange(8)}, ids), 0).item()
    slope = array(drawn[0]) @ array(net.network.weight)
    squares = ((slope * array(mask)) ** 2 + (slope * array(x)) ** 2).sum(1)
    task = F.cross_entropy(net.network(x * mask), ids).item()
    assert ours == pytest.approx(task + 0.5 * 3 / 2 * squares.mean(), rel=1e-12)


def test_the_batch_stays_the_callers():
    net = Net(jacobian_weight=0.5)
    batch = batches(1)[0]
    x = batch[0]
    net.training_step(batch, 0).backward()
    assert batch[0] is x
    assert not x.requires_grad
    assert x.grad is None
    assert net._jacobian_inputs == net._jacobian_terms == []


def test_an_input_that_requires_grad_already_is_handed_on_itself():
    net = Net(jacobian_weight=0.5)
    x, ids = batches(1)[0]
    x.requires_grad_()
    net.training_step((x, ids), 0).backward()
    assert net.batches[0][0] is x
    assert x.grad is not None


def test_a_doubled_batch_is_seen_as_such(drawn):
    net = DoubledNet(deep().double(), rdrop_weight=0.7, jacobian_weight=0.5, flooding_level=9.0)
    net.train()
    net.training_step(batches(1, dtype=torch.float64)[0], 0)
    assert len(drawn[0]) == 16
    assert len(net.batches[0][0]) == 16


def test_flooding_floods_the_task_alone(fixed):
    """Below the level the loss is climbed, but the Jacobian still shrinks."""
    net = DoubledNet(linear().double(), rdrop_weight=0.0, jacobian_weight=0.5, flooding_level=9.0)
    x, ids = batches(1, dtype=torch.float64)[0]
    loss = net.training_step((x, ids), 0).item()
    slope = array(first_direction(torch.zeros(1, 3).double())) @ array(net.network.weight)
    task = F.cross_entropy(net.network(x), ids).item()
    assert loss == pytest.approx(18 - task + 0.5 * 3 / 2 * (slope**2).sum(), rel=1e-12)


def test_of_a_mixture_it_is_the_mixtures(drawn):
    net = MixedNet(smooth().double(), mixup_alpha=1.0, jacobian_weight=0.5)
    loss = net.training_step(batches(1, dtype=torch.float64)[0], 0).item()
    x, target = net.batches[0]
    task = F.cross_entropy(net.network(x), target).item()
    penalty = 3 / 2 * squared_slope(net.network, x.detach(), drawn[0]).mean()
    assert loss == pytest.approx(task + 0.5 * penalty, rel=1e-7)


@pytest.mark.parametrize("cls", [Both, Swapped])
def test_beside_a_gradient_penalty_each_adds_its_own(cls, drawn):
    net = cls(linear().double(), jacobian_weight=0.5, gradient_penalty_weight=2.0)
    x, ids = batches(1, dtype=torch.float64)[0]
    loss = net.training_step((x, ids), 0).item()
    w, logits = array(net.network.weight), net.network(x)
    jacobian = 3 / 2 * ((array(drawn[0]) @ w) ** 2).sum(1).mean()
    errors = array(logits.softmax(1) - F.one_hot(ids, 3))
    penalty = ((errors @ w) ** 2).sum(1).mean() / 2
    assert loss == pytest.approx(F.cross_entropy(logits, ids).item() + 0.5 * jacobian + 2.0 * penalty, rel=1e-12)


def test_sams_second_pass_takes_the_same_directions(drawn):
    net = ClimbingNet(smooth(), sam_rho=0.1, jacobian_weight=0.5)
    fit(net, batches(2))
    assert len(drawn) == 4
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


def test_with_one_direction_for_all_accumulation_is_exact(fixed, tmp_path):
    nets = [make("jacobian", plain=True).double() for _ in range(2)]
    for net, size, accumulate in zip(nets, [8, 32], [4, 1], strict=True):
        made = trainer(tmp_path, max_epochs=3, precision="64-true", accumulate_grad_batches=accumulate)
        made.fit(net, loaders(ROWS["jacobian"][1], size, 32, torch.float64))
    assert_close(nets[0].state_dict(), nets[1].state_dict())


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_fork_find_unused_parameters_true"])
def test_with_one_direction_for_all_two_ranks_are_one_process(strategy, fixed, tmp_path, monkeypatch):
    from tests.contract import test_contract_ddp

    monkeypatch.setattr(
        test_contract_ddp, "trainer", lambda path, **kwargs: trainer(path, **{**kwargs, "strategy": strategy})
    )
    rank0, rank1 = fit_on_two_ranks("jacobian", tmp_path, 4)
    net = make("jacobian", plain=True).double()
    trainer(tmp_path, precision="64-true").fit(net, loaders(ROWS["jacobian"][1], 8, 32, torch.float64))
    assert_close(rank0, rank1, 0.0)
    assert_close(rank0, dict(net.state_dict()))


class Flat(nn.Module):
    """A network whose input gradient lies below the range of fp16."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        with torch.no_grad():
            self.layers[0].weight.mul_(1e-4)
            self.layers[2].weight.mul_(1e-4)

    def forward(self, x):
        return self.layers(x)


def test_fp16_sees_gradients_below_its_range(fixed):
    torch.manual_seed(0)
    net = Net(Flat(), jacobian_weight=0.5, lr=0.0)
    data = batches(1)
    v = first_direction(torch.zeros(8, 3))
    expected = 3 / 2 * squared_slope(net.network.double(), data[0][0].double(), v.double()).mean()
    net.float()
    made = fit(net, data, precision="16-mixed")
    assert made.callback_metrics["train/jacobian_epoch"].item() == pytest.approx(expected, rel=5e-3)


def test_a_step_whose_input_gradient_overflows_is_skipped_and_the_scale_lowered(fixed):
    net = Net(smooth(), jacobian_weight=0.5)
    before = [p.clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    made = fit(net, batches(1), plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**21
    assert not np.isfinite(made.callback_metrics["train/jacobian_epoch"].item())
    fit(net, batches(1) * 12, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert not torch.equal(before[0], next(net.parameters()))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_it_makes_outputs_change_less_with_the_input():
    slopes = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        net = Net(smooth(), jacobian_weight=weight)
        fit(net, batches(1) * 100)
        x = batches(1)[0][0].double()
        slopes.append(squared_slope(net.network.double(), x, torch.eye(3).double()[0]).mean())
    assert slopes[1] < slopes[0] / 4


def test_without_gradients_nothing_is_added():
    """StochasticWeightAveraging's last passes, and hosts that evaluate within training."""
    net = Net(jacobian_weight=0.5)
    batch = batches(1)[0]
    with torch.no_grad():
        assert net.training_step(batch, 0).item() == F.cross_entropy(net.network(batch[0]), batch[1]).item()


def test_the_term_is_recorded_without_its_weight(fixed):
    net = Net(jacobian_weight=0.5, lr=0.0)
    made = fit(net, batches(2))
    slope = array(first_direction(torch.zeros(1, 3))) @ array(net.network.weight)
    assert made.callback_metrics["train/jacobian_epoch"].item() == pytest.approx(1.5 * (slope**2).sum(), rel=1e-6)


def test_validation_is_plain():
    net = Net(jacobian_weight=0.5)
    data = batches(2)
    made = fit(net, data, val_data=data[:1])
    expected = F.cross_entropy(net(data[0][0]), data[0][1]).item()
    assert made.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_off_leaves_the_batch_alone():
    net = Net(jacobian_weight=0.0)
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == F.cross_entropy(net.network(batch[0]), batch[1]).item()
    assert net.batches[0] is batch


def test_token_ids_have_no_gradient():
    net = Net(nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3)), jacobian_weight=0.5)
    with pytest.raises(InvalidValueError) as caught:
        net.training_step((torch.randint(9, (8, 4)), batches(1)[0][1]), 0)
    assert str(caught.value) == (
        "JacobianMixin takes gradients with respect to the inputs, but they are torch.int64: integers such as token "
        "ids have none. Use it on images, vectors or embeddings, or switch it off."
    )


class OwnInput(Tiny):
    def training_step(self, batch, batch_idx):
        return self.compute_loss(self(batch[0].detach() / 2), batch[1])


class DeafNet(JacobianMixin, OwnInput):
    pass


def test_a_host_that_makes_its_own_input():
    with pytest.raises(
        InvalidValueError, match=r"^JacobianMixin: The output does not depend on the inputs: .+no_grad\.$"
    ):
        DeafNet(jacobian_weight=0.5).training_step(batches(1)[0], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jacobian_weight": -0.1}, "jacobian_weight is -0.1; it must be a number in [0, inf)."),
        ({"jacobian_projections": 0}, "jacobian_projections is 0; it must be an integer of at least 1."),
        ({"jacobian_projections": 1.5}, "jacobian_projections is 1.5; it must be an integer of at least 1."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError) as caught:
        Net(**arguments)
    assert str(caught.value) == message
