import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning.functional import WeightAverage, assign_, parts_named, trained_parts
from tests.numerics import array


class Tied(nn.Module):
    """A shared weight, batch norm with and without weights, a frozen part and buffers that are no statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm, self.plain_norm = nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)
        self.teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("center", torch.ones(3))
        self.left = nn.Linear(2, 2)


NAMES = ["bias", "first.weight", "first.bias", "norm.weight", "norm.bias"]
STATISTICS = [f"{norm}.running_{kind}" for norm in ("norm", "plain_norm") for kind in ("mean", "var")]


def parts(net, held=False):
    found = trained_parts(net, lambda part: part is net.left)
    return WeightAverage(found, held=held)


def move(net):
    """New weights; every other time the statistics are other tensors."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    for norm in (net.norm, net.plain_norm):
        norm.running_mean.add_(torch.randn(3))
        norm.running_var = norm.running_var + torch.rand(3)


def test_what_is_averaged():
    net = Tied()
    found = trained_parts(net, lambda part: part is net.left)
    assert [*found.parameters] == NAMES
    assert [*found.statistics] == STATISTICS
    assert found.parameters["first.weight"] is net.second.weight


def test_parts_are_found_again_by_name_trained_or_not():
    net = Tied()
    names = {"first.weight", "norm.running_var", "nothing"}
    net.requires_grad_(False)
    found = parts_named(net, names)
    assert [*found.parameters] == ["first.weight"]
    assert found.parameters["first.weight"] is net.first.weight
    assert [*found.statistics] == ["norm.running_var"]


def test_a_compiled_part_has_the_names_it_had():
    net = Tied()
    names = [*trained_parts(net).parameters], [*trained_parts(net).statistics]
    net.first, net.norm = (torch.compile(part, backend="eager") for part in (net.first, net.norm))
    compiled = trained_parts(net)
    assert sorted(compiled.parameters) == sorted(names[0])
    assert sorted(compiled.statistics) == sorted(names[1])
    again = parts_named(net, [*names[0], *names[1]])
    assert {n: id(p) for n, p in again.parameters.items()} == {n: id(p) for n, p in compiled.parameters.items()}


@pytest.mark.parametrize("held", [False, True])
def test_values_against_numpy(held):
    net = Tied()
    average = parts(net, held)
    state = net.state_dict()
    expected = {name: array(state[name]).copy() for name in NAMES + STATISTICS}
    for decay in (0.9, 0.5, 0.0, 0.3):
        move(net)
        average.update(decay)
        for name in NAMES if held else NAMES + STATISTICS:
            expected[name] = decay * expected[name] + (1 - decay) * array(net.state_dict()[name])
    average.swap_in()
    for name, value in expected.items():
        np.testing.assert_allclose(array(net.state_dict()[name]), value, atol=1e-6, err_msg=name)


def test_the_exchange_moves_pointers_and_touches_nothing_else():
    net = Tied()
    average = parts(net)
    before = {name: (value.data_ptr(), value.clone()) for name, value in net.state_dict().items()}
    identities = [*map(id, net.parameters())]
    move_to = {name: value.data_ptr() for name, value in average._averages.items()}
    with torch.no_grad():
        net.first.weight.mul_(2)
    raw = net.first.weight.clone()
    with torch.inference_mode():
        average.swap_in()
        average.swap_in()
        assert average.is_in
    inside = {name: value.data_ptr() for name, value in net.state_dict().items()}
    assert {name: inside[name] for name in move_to} == move_to
    others = inside.keys() - move_to.keys() - {"second.weight"}
    assert {inside[name] == before[name][0] for name in others} == {True}
    assert torch.equal(net.second.weight, before["first.weight"][1])
    assert torch.equal(average.raw()["first.weight"], raw)
    average.swap_out()
    average.swap_out()
    assert not average.is_in
    assert {n: value.data_ptr() for n, value in net.state_dict().items()} == {n: p for n, (p, _) in before.items()}
    assert torch.equal(net.first.weight, raw)
    assert [*map(id, net.parameters())] == identities
    net.first(torch.ones(1, 3)).sum().backward()  # nothing became an inference tensor
    assert net.first.weight.grad is not None


def test_half_precision_is_averaged_in_float32():
    net = nn.Linear(2, 2).bfloat16()
    average = WeightAverage(trained_parts(net))
    expected = {name: array(value.float()).copy() for name, value in net.state_dict().items()}
    for _ in range(50):
        with torch.no_grad():
            net.weight.add_(0.25)
        average.update(0.999)
        expected["weight"] = 0.999 * expected["weight"] + 0.001 * array(net.weight.float())
    finer = average.finer()
    np.testing.assert_allclose(array(finer["weight"]), expected["weight"], atol=1e-5)
    raw = net.weight.clone()
    with torch.inference_mode():
        average.swap_in()
    net(torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)).sum().backward()  # as an attack in validation does
    assert net.weight.dtype is torch.bfloat16
    assert torch.equal(net.weight, finer["weight"].bfloat16())
    average.swap_out()
    assert torch.equal(net.weight, raw)
    again = WeightAverage(trained_parts(copy.deepcopy(net)))
    again.load(finer)
    assert torch.equal(again.finer()["weight"], finer["weight"])


def test_double_precision_stays():
    average = WeightAverage(trained_parts(nn.Linear(2, 2).double()))
    assert average.finer() == {}
    assert average._averages["weight"].dtype is torch.float64


def test_what_is_added_begins_with_its_present_value_and_the_rest_goes_on():
    net = Tied()
    net.norm.requires_grad_(False)
    average = WeightAverage(trained_parts(net))
    assert "norm.weight" not in average._averages
    start = net.first.bias.clone()
    move(net)
    average.update(0.5)
    net.norm.requires_grad_(True)
    frozen = net.norm.weight.clone()
    average.add(trained_parts(net))
    now = net.first.bias.clone()
    move(net)
    average.update(0.5)
    expected = 0.25 * start + 0.25 * now + 0.5 * net.first.bias
    later = 0.5 * frozen + 0.5 * net.norm.weight
    average.swap_in()
    torch.testing.assert_close(net.first.bias, expected)
    torch.testing.assert_close(net.norm.weight, later)


def test_raw_weights_are_restored_and_versions_tell_of_it():
    net = Tied()
    average = parts(net)
    move(net)
    raw = {name: value.clone() for name, value in average.raw().items()}
    versions = average.versions()
    average.swap_in()
    average.swap_out()
    assert average.versions() == versions
    other = Tied()
    assign_(parts_named(other, raw), raw)
    for name, value in raw.items():
        assert torch.equal(other.state_dict()[name], value)
    net.load_state_dict(other.state_dict())
    assert average.versions() != versions
