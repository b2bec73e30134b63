from __future__ import annotations

import copy
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import EMATeacherMixin, ImageClassifier, NormMixin, StochasticDepthMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.test_residual import BasicBlock, NoEnd, PreNorm
from tests.mixins.tiny import FEATURES, NUM_CLASSES, Tiny, assert_same, batches, fit, smooth
from tests.numerics import array


class Net(StochasticDepthMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, StochasticDepthMixin, Tiny):
    pass


class Block(nn.Module):
    def __init__(self, width=FEATURES):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(self.norm(x))


def blocks(count=3) -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(count)), nn.Linear(FEATURES, NUM_CLASSES))


def rates(net) -> dict[str, float]:
    return {name: hook.rate for name, m in net.named_modules() for hook in m._forward_hooks.values()}


def batch_dims(net) -> dict[str, int]:
    return {name: hook.batch_dim for name, m in net.named_modules() for hook in m._forward_hooks.values()}


def test_the_linear_rule():
    net = ImageClassifier(network="resnet18", stochastic_depth_rate=0.4)
    expected = {f"network.{2 + block}.bn2": 0.4 * block / 8 for block in range(1, 9)}
    assert rates(net) == pytest.approx(expected)
    net = ImageClassifier(network="wrn_16_2", stochastic_depth_rate=0.3)
    assert rates(net) == pytest.approx({f"network.{block}.conv2": 0.3 * block / 6 for block in range(1, 7)})


def test_the_uniform_rule():
    net = ImageClassifier(network="resnet18", stochastic_depth_rate=0.4, stochastic_depth_mode="uniform")
    assert list(rates(net).values()) == [0.4] * 8


def test_a_sample_has_its_branch_or_not():
    torch.manual_seed(0)
    net = Net(nn.Sequential(Block()), stochastic_depth_rate=0.3)
    block, x = net.network[0], torch.randn(2000, FEATURES)
    y, clean = array(net(x)), array(block.linear(block.norm(x)))  # this call is dropped too
    bare = copy.deepcopy(block).eval()
    branch = array(bare(x)) - array(x)
    kept = ~np.isclose(y, array(x)).all(1)
    assert kept.mean() == pytest.approx(0.7, abs=4 * (0.21 / 2000) ** 0.5)
    np.testing.assert_allclose(y[kept], (array(x) + branch / 0.7)[kept], atol=1e-5)
    assert not np.allclose(clean, branch)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("make", ["layer", "own"])
def test_whole_sequences_are_dropped_in_transformers(batch_first, make):
    torch.manual_seed(0)
    if make == "layer":
        network = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=True)
        names = ["network.dropout1", "network.dropout2"]
    else:
        network, names = PreNorm(batch_first=batch_first), ["network.attn", "network.fc2"]
    clean = copy.deepcopy(network)
    net = Net(network, stochastic_depth_rate=0.6)
    dim = 0 if batch_first else 1
    assert rates(net) == pytest.approx(dict(zip(names, [0.3, 0.6], strict=True)))
    assert batch_dims(net) == dict.fromkeys(names, dim)
    x = torch.randn(50, 5, 8)
    y, whole = net(x if batch_first else x.transpose(0, 1)), clean(x if batch_first else x.transpose(0, 1))
    if not batch_first:
        y, whole = y.transpose(0, 1), whole.transpose(0, 1)
    changed = (~torch.isclose(y, x)).all(2)  # [N, T]: a dropped position keeps its input
    assert torch.equal(changed.any(1), changed.all(1))
    assert (~changed).any()
    assert changed.double().mean().item() == pytest.approx(1 - 0.3 * 0.6, abs=4 * (0.15 / 50) ** 0.5)
    assert torch.equal(net.eval()(x), network.eval()(x))
    assert not torch.allclose(y, whole)


def test_the_expectation_is_the_whole_branch():
    torch.manual_seed(0)
    block = BasicBlock(2, 2).double()
    block.relu = nn.Identity()  # so that the output is a linear function of the branch
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64).expand(3000, -1, -1, -1)
    whole = array(block(x))[0]
    net = Net(nn.Sequential(block), stochastic_depth_rate=0.4)
    bound = 5 * np.abs(whole - array(x)[0]).max() * (0.4 / 0.6 / 3000) ** 0.5
    np.testing.assert_allclose(array(net(x)).mean(0), whole, atol=bound)


def test_a_dropped_branch_has_no_gradient():
    torch.manual_seed(0)
    net = Net(nn.Sequential(Block()), stochastic_depth_rate=0.5)
    x = torch.randn(1, FEATURES)
    seen = set()
    for _ in range(20):
        net.zero_grad()
        y = net(x)
        y.sum().backward()
        dropped = torch.equal(y, x)
        gradient = array(net.network[0].linear.bias.grad)
        np.testing.assert_allclose(gradient, np.full(FEATURES, 0.0 if dropped else 2.0))
        seen.add(dropped)
    assert seen == {True, False}


Pair = namedtuple("Pair", ["first", "second"])


class Returns(nn.Module):
    """A branch that returns more than a tensor."""

    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(FEATURES, FEATURES), wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: Pair(y, y)])
def test_of_a_tuple_the_first_item_is_dropped(wrap):
    net = Net(nn.Sequential(Returns(wrap)), stochastic_depth_rate=0.5, stochastic_depth_layers=r"network\.0")
    torch.manual_seed(0)
    first, second = output = net.network[0](torch.randn(50, FEATURES))
    assert type(output) is type(wrap(first))
    dropped = (first == 0).all(1)
    assert 0 < dropped.sum() < 50
    assert torch.equal(first, torch.where(dropped[:, None], 0, second / 0.5))


def test_a_named_module_that_returns_no_tensor():
    net = Net(Returns(lambda y: {"y": y}), stochastic_depth_layers="network")
    with pytest.raises(InvalidValueError, match="A Returns returned a dict; a residual branch must be a tensor"):
        net(torch.randn(2, FEATURES))


def test_names_in_place_of_what_is_found():
    net = Net(blocks(4), stochastic_depth_rate=0.4, stochastic_depth_layers=r"network\.[13]\.linear")
    assert rates(net) == pytest.approx({"network.1.linear": 0.2, "network.3.linear": 0.4})
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    net = Net(layer, stochastic_depth_layers=r".*\.(self_attn|linear2)")
    assert rates(net) == pytest.approx({"network.self_attn": 0.05, "network.linear2": 0.1})
    assert batch_dims(net) == {"network.self_attn": 1, "network.linear2": 1}
    assert all(name for name in rates(Net(blocks(1), stochastic_depth_layers=".*")))  # not the model itself


def test_training_says_what_is_dropped(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_tuning.mixins.regularization.stochastic_depth.rank_zero_info", said.append)
    fit(Net(nn.Sequential(*blocks(2), nn.Identity()), stochastic_depth_rate=0.3), batches(1))
    assert said == ["StochasticDepthMixin drops network.0.linear 0.15, network.1.linear 0.3"]


def test_evaluation_and_a_teacher_drop_nothing():
    net = TaughtNet(blocks(), stochastic_depth_rate=0.5, ema_teacher_decay=0.0)
    fit(net, batches(2))
    x = torch.randn(50, FEATURES)
    bare = copy.deepcopy(net.network).eval()
    for m in bare.modules():
        m._forward_hooks.clear()
    net.train()
    assert torch.equal(net.pseudo_logits(x), bare(x))
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), bare(x))
    fit(net.train(), batches(2))  # the teacher is there from the start now, and is no part of the depth
    expected = {f"network.{block}.linear": 0.5 * (block + 1) / 3 for block in range(3)}
    assert {name: rate for name, rate in rates(net).items() if "teacher" not in name} == pytest.approx(expected)
    assert list(net._stochastic_depth.hooks) == [f"network.{i}.linear" for i in range(3)]
    net.eval().configure_model()  # as for a test run: now its mode does not tell it apart
    assert list(net._stochastic_depth.hooks) == [f"network.{i}.linear" for i in range(3)]


def test_copies_have_hooks_of_their_own():
    net = Net(blocks(), stochastic_depth_rate=0.5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other._stochastic_depth.set_rate(0.0)
        x = torch.randn(50, FEATURES)
        assert torch.equal(other(x), other(x))
        assert not torch.equal(net(x), net(x))


def test_blocks_that_were_exchanged_after_init_are_found():
    net = Net(blocks(2), stochastic_depth_rate=0.5)
    removed = net.network[0].linear
    net.network[0] = PreNormOf(FEATURES)
    fit(net, batches(1))
    assert rates(net) == pytest.approx({"network.0.mlp": 0.25, "network.1.linear": 0.5})
    assert not removed._forward_hooks


class NormLeftNet(NormMixin, StochasticDepthMixin, Tiny):
    pass


class NormRightNet(StochasticDepthMixin, NormMixin, Tiny):
    pass


@pytest.mark.parametrize("cls", [NormLeftNet, NormRightNet])
def test_a_norm_layer_that_another_technique_exchanges_has_one_hook(cls):
    network = nn.Sequential(BasicBlock(2, 2), nn.Flatten(), nn.Linear(50, NUM_CLASSES))
    net = cls(network, stochastic_depth_rate=0.5, norm_name="group", norm_groups=1)
    fit(net, batches(1, shape=(2, 5, 5)))
    assert [len(m._forward_hooks) for m in (network[0].bn1, network[0].bn2)] == [0, 1]
    assert isinstance(network[0].bn2, nn.GroupNorm)
    assert rates(net) == {"network.0.bn2": 0.5}


class PreNormOf(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, x):
        return x + self.mlp(x)


def test_a_compiled_network_drops_the_same():
    net = Net(blocks(), stochastic_depth_rate=0.5)
    plain = copy.deepcopy(net)
    net.network.compile(backend="eager")
    outputs = []
    for module in (net, plain):
        torch.manual_seed(3)
        outputs.append(module(torch.ones(5, FEATURES)))
    assert torch.equal(*outputs)


def test_finding_draws_no_random_numbers_and_changes_no_state():
    torch.manual_seed(0)
    bare = Tiny(blocks())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    net = Net(blocks())
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(net.state_dict(), bare.state_dict())


def test_off_registers_nothing():
    assert rates(Net(blocks(), stochastic_depth_rate=0.0)) == {}


def test_no_effect():
    expected = (
        r"no residual branch was found in Tiny\. Name the modules whose output is added .*stochastic_depth_layers='"
    )
    with pytest.raises(NoEffectError, match=expected):
        fit(Net(smooth()), batches(1))
    with pytest.raises(NoEffectError, match=r"\(the branches in network\.0 do not end in a module of their own\)"):
        fit(Net(nn.Sequential(NoEnd())), batches(1))
    expected = (
        r"stochastic_depth_layers='linear' matches the whole name of none of its modules: 'network', 'network\.0', "
    )
    with pytest.raises(NoEffectError, match=expected):
        fit(Net(blocks(), stochastic_depth_layers="linear"), batches(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stochastic_depth_rate": 1.0}, r"stochastic_depth_rate is 1\.0; it must be a number in \[0, 1\)\."),
        ({"stochastic_depth_mode": "square"}, r"stochastic_depth_mode is 'square'"),
        ({"stochastic_depth_layers": "*"}, r"stochastic_depth_layers is '\*', which is no regular expression"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(blocks(), **arguments)
