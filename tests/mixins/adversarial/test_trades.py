import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import AWPMixin, EMATeacherMixin, ManifoldMixupMixin, TRADESMixin
from lightning_tuning.errors import CompositionError, InvalidValueError
from tests.mixins.tiny import Tiny, assert_same, batches, deep, fit, linear, parameters, smooth
from tests.numerics import array, softmax

from . import by_hand

EPSILON, STEPS, SIZE, WEIGHT = 0.4, 3, 0.15, 2.0
ON = {"trades_weight": WEIGHT, "trades_epsilon": EPSILON, "trades_steps": STEPS, "trades_step_size": SIZE}


class Net(TRADESMixin, Tiny):
    pass


class Taught(EMATeacherMixin, TRADESMixin, Tiny):
    pass


def step(weight=WEIGHT, norm="linf", teacher=None):
    """Zhang et al., equation 5, on a linear classifier: both branches are differentiated, unless a teacher has one."""

    def pairs(w, b, x, ids):
        own = softmax(x @ w.T + b)
        p = own if teacher is None else softmax(x @ teacher[0].T + teacher[1])
        noise = by_hand.start("gaussian", x, EPSILON)
        moved = x + by_hand.attack(w, b, x, lambda q: q - p, noise, EPSILON, STEPS, SIZE, norm)
        q = softmax(moved @ w.T + b)
        clean = own - by_hand.hot(ids)
        if teacher is None:
            clean = clean + weight * by_hand.kl_by_clean(p, q)
        return [(x, clean / len(x)), (moved, weight * (q - p) / len(x))]

    return pairs


def both(network, cls=Net, norm="linf", teacher=None, **settings):
    data = batches(5, dtype=torch.float64)
    torch.manual_seed(5)
    expected = by_hand.train(network, data, step(norm=norm, teacher=teacher))
    torch.manual_seed(5)
    net = cls(network, trades_norm=norm, **{**ON, **settings})
    fit(net, data, precision="64-true")
    return expected, net


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_against_numpy(norm):
    network = linear().double()
    expected, _ = both(network, norm=norm)
    by_hand.assert_trained(network, expected)


def test_a_teacher_is_the_reference_of_the_attack_and_of_the_loss():
    network = linear().double()
    teacher = array(network.weight).copy(), array(network.bias).copy()
    settings = {"ema_teacher_decay": 1.0, "ema_teacher_warmup": False, "trades_reference": "teacher"}
    expected, _ = both(network, Taught, teacher=teacher, **settings)
    by_hand.assert_trained(network, expected)


def test_the_term_is_logged_and_positive():
    net = Net(linear(), **ON)
    trainer = fit(net, batches(3))
    assert trainer.callback_metrics["train/trades_epoch"] > 0.01


def test_epsilon_0_is_the_bare_host_and_the_weight_0_is_it_bitwise():
    network, data = smooth(), batches(4)
    bare, off, none = copy.deepcopy(network), copy.deepcopy(network), copy.deepcopy(network)
    fit(Tiny(bare), data)
    fit(Net(off, **{**ON, "trades_weight": 0.0}), data)
    fit(Net(none, **{**ON, "trades_epsilon": 0.0}), data)
    assert_same(parameters(bare), parameters(off))
    for a, b in zip(parameters(bare), parameters(none), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Watching(nn.Module):
    """Notes how it is passed: whether it and the batch norm before it train."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.passes, self.inputs = norm, [], []

    def forward(self, x):
        self.passes.append((self.training, self.norm.training))
        self.inputs.append(x.detach())
        return x


def watched(frozen):
    network = deep()
    if frozen:
        network[1].eval()
    watching = Watching(network[1])
    return nn.Sequential(watching, network), watching


class Unfrozen(Net):
    def on_train_epoch_start(self):  # Lightning keeps the modes that it found
        self.modes = [m.training for m in self.modules()]

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        assert self.modes == [m.training for m in self.modules()]


@pytest.mark.parametrize("frozen", [False, True])
def test_the_attack_runs_in_evaluation_mode_and_leaves_no_trace(frozen):
    network, watching = watched(frozen)
    net = Unfrozen(network, **ON)
    x = batches(1)[0][0]
    fit(net, batches(1))
    trains = (True, not frozen)
    assert watching.passes == [trains] + [(False, False)] * (STEPS + 1) + [trains]
    # Batch norm saw the clean and the adversarial inputs, once each.
    assert network[1][1].num_batches_tracked.item() == (0 if frozen else 2)
    assert torch.equal(watching.inputs[0], x)
    assert torch.equal(watching.inputs[1], x)
    moved = watching.inputs[-1] - x
    assert 0 < moved.abs().max() <= EPSILON * (1 + 1e-6)


def test_the_attack_touches_no_gradient():
    """The second micro-batch of a window finds the gradient of the first as it was left."""
    network = smooth()
    net = Net(network, **ON)
    seen = []
    attack = net._trades_attack()

    class Checking:
        def perturb(self, *args):
            before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
            delta = attack.perturb(*args)
            for old, p in zip(before, net.parameters(), strict=True):
                assert (old is None and p.grad is None) or torch.equal(old, p.grad)
            seen.append(before[0] is not None)
            assert not any(d.requires_grad for d in delta)
            return delta

    net._trades_attack = Checking
    fit(net, batches(2), accumulate_grad_batches=2)
    assert seen == [False, True]


class Perturbed(AWPMixin, TRADESMixin, Tiny):
    pass


def test_the_second_pass_of_awp_has_the_same_adversarial_inputs():
    network, watching = watched(frozen=False)
    fit(Perturbed(network, awp_gamma=0.1, **ON), batches(2), accumulate_grad_batches=2)
    modes = [own for own, _ in watching.passes]
    once = [True] + [False] * (STEPS + 1) + [True]
    assert modes == once + once + [True] * 4
    size = len(once)
    first = [watching.inputs[i] for i in (0, size - 1, size, 2 * size - 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, watching.inputs[2 * size :], strict=True))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_step_in_half_precision_is_near_that_in_float32(precision):
    network, data = smooth(), batches(1, size=64)
    steps = []
    for kind in ("32-true", precision):
        own = copy.deepcopy(network)
        torch.manual_seed(5)
        fit(Net(own, lr=1.0, momentum=0.0, **ON), data, precision=kind)
        pairs = zip(parameters(own), parameters(network), strict=True)
        steps.append(np.concatenate([array(a - b).ravel() for a, b in pairs]))
    assert np.linalg.norm(steps[0] - steps[1]) < 0.1 * np.linalg.norm(steps[0])


class TwoHeads(Tiny):
    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        return self.compute_loss(logits, batch[1]) + self.compute_loss(-logits, batch[1])


class TwoHeadsNet(TRADESMixin, TwoHeads):
    pass


def test_a_host_that_computes_two_losses_is_attacked_once():
    network = linear()
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    fit(TwoHeadsNet(network, **ON), batches(1))
    assert len(passes) == STEPS + 3


class Mixed(EMATeacherMixin, ManifoldMixupMixin, TRADESMixin, Tiny):
    pass


def test_a_reference_that_is_not_there_or_does_not_fit():
    with pytest.raises(InvalidValueError, match=r"trades_reference is 'teacher', but Tiny has none\. Add a mixin"):
        fit(Net(trades_reference="teacher"), batches(1))
    off = {"ema_teacher_decay": None, "trades_reference": "teacher"}
    with pytest.raises(InvalidValueError, match=r"trades_reference is 'teacher', but Tiny has none\. Add a mixin"):
        fit(Taught(**off), batches(1))
    with pytest.raises(CompositionError, match="TRADESMixin and ManifoldMixupMixin conflict"):
        fit(Mixed(smooth(), manifold_mixup_alpha=1.0, trades_reference="teacher"), batches(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trades_weight": -1}, r"trades_weight is -1; it must be a number in \[0, inf\)\."),
        ({"trades_epsilon": -1}, "trades_epsilon is -1"),
        ({"trades_steps": 0}, "trades_steps is 0; it must be an integer of at least 1"),
        ({"trades_step_size": 0}, r"trades_step_size is 0; it must be a number in \(0, inf\)"),
        ({"trades_norm": "l1"}, "trades_norm is 'l1'"),
        ({"trades_reference": "techer"}, "trades_reference is 'techer'; did you mean 'teacher'?"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(**arguments)


def test_one_logit_is_refused():
    with pytest.raises(InvalidValueError, match=r"TRADESMixin takes logits \[N, C, ...\] of two or more classes"):
        fit(Net(nn.Linear(4, 1)), [(torch.randn(3, 4), torch.zeros(3, dtype=torch.long))])


def test_the_search_leaves_out_what_the_loss_ignores():
    net = type("Net", (TRADESMixin, by_hand.Sequences), {})(linear(), **ON)
    x, ids = by_hand.sequences()
    seen = []
    net.network.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    net.training_step((x, ids), 0)
    change = (seen[-1] - x).abs().amax(-1)
    assert (change[ids >= 0] > SIZE).all()
    assert (change[ids < 0] < 0.01).all()  # the noise of the start


def test_logits_that_the_host_reshapes():
    net = type("Net", (TRADESMixin, by_hand.Flattened), {})(linear(), **ON)
    with pytest.raises(
        InvalidValueError, match=r"compute_loss gets, \[20, 3\], with those that forward gives, \[4, 3, 5\]"
    ):
        net.training_step(by_hand.sequences(), 0)
