import random
from array import array
from collections import OrderedDict, defaultdict, deque

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_tuning.callbacks._snapshot import Snapshot


class Helper:
    def __init__(self):
        self.count, self.seen, self.best = 0, [1, {"a": {2}}], torch.ones(2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.helper, self.queue, self.table = Helper(), deque([1, 2], maxlen=3), np.zeros(3)
        self.numbers = array("d", [1.0, 2.0])
        self.by_name = OrderedDict(b=1, a=2)
        self.lists = defaultdict(list, x=[1])
        self.generators = [torch.Generator(), np.random.default_rng(1), random.Random(1), np.random.RandomState(1)]
        self.wide = torch.ones(1).expand(4)


def draws(net):
    a, b, c, d = net.generators
    return torch.rand(2, generator=a).tolist(), b.random(), c.random(), d.rand()


def test_everything_is_put_back_in_place():
    net = Net()
    net.layer.weight.grad = torch.ones(2, 2)
    weight, grad, seen, helper = net.layer.weight, net.layer.weight.grad, net.helper.seen, net.helper
    kept = weight.detach().clone()
    snapshot = Snapshot([net])
    first = draws(net)
    with torch.no_grad():
        weight.mul_(3)
        grad.add_(1)
        net.hidden.add_(1)
        net.helper.best.add_(1)
    weight.grad = torch.zeros(2, 2)
    net.layer.bias.requires_grad_(False)
    net.layer.bias.data = torch.full((2,), 7.0)
    net.eval()
    net.layer.new = nn.Linear(1, 1)
    net.helper.count = 5
    seen[1]["a"].add(3)
    seen.append(2)
    net.helper.seen = None
    net.helper = Helper()
    net.queue.extend([3, 4])
    net.by_name["c"], net.by_name["b"] = 3, net.by_name.pop("b")
    net.lists["x"].append(2)
    assert net.lists["y"] == []
    net.table[:] = 1
    net.numbers.append(3.0)
    net.numbers[0] = 9.0
    snapshot.restore()
    assert net.layer.weight is weight
    assert net.helper is helper
    assert helper.seen is seen
    assert torch.equal(weight, kept)
    assert weight.grad is grad
    assert torch.equal(grad, torch.ones(2, 2))
    assert net.layer.bias.requires_grad
    assert not torch.equal(net.layer.bias, torch.full((2,), 7.0))
    assert net.hidden.sum() == 0
    assert torch.equal(helper.best, torch.ones(2))
    assert (net.training, net.layer.training, hasattr(net.layer, "new")) == (True, True, False)
    assert (helper.count, seen) == (0, [1, {"a": {2}}])
    assert (list(net.queue), net.queue.maxlen) == ([1, 2], 3)
    assert list(net.by_name.items()) == [("b", 1), ("a", 2)]
    assert net.lists == {"x": [1]}
    assert net.table.sum() == 0
    assert net.numbers == array("d", [1.0, 2.0])
    assert draws(net) == first


def test_an_optimizers_state_is_put_back():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.1), foreach=False)

    def step(value):
        optimizer.zero_grad()
        (net(torch.ones(2)) * value).sum().backward()
        optimizer.step()

    fresh = Snapshot([net, optimizer])
    step(1.0)
    kept, snapshot = [p.detach().clone() for p in net.parameters()], Snapshot([net, optimizer])
    step(5.0)
    after = [p.detach().clone() for p in net.parameters()]
    optimizer.param_groups[0]["lr"].fill_(9.0)
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), kept, strict=True))
    step(5.0)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), after, strict=True))
    fresh.restore()
    assert not optimizer.state
    assert all(p.grad is None for p in net.parameters())


def test_of_data_only_places_and_generators_are_kept():
    """A dataset may be larger than what memory is left."""
    x = torch.zeros(5)
    loader = DataLoader(TensorDataset(x), sampler=RandomSampler(x, generator=torch.Generator()))
    loader.dataset.rng, loader.dataset.place, loader.dataset.files = np.random.default_rng(0), 0, [0] * 2000
    snapshot = Snapshot([loader], data=True)
    drawn, order = loader.dataset.rng.random(), list(loader.sampler)
    x.add_(1)
    loader.dataset.place, loader.dataset.files[0] = 3, 1
    snapshot.restore()
    assert (loader.dataset.rng.random(), list(loader.sampler)) == (drawn, order)
    assert loader.dataset.place == 0
    assert (x[0], loader.dataset.files[0]) == (1, 1)


class Foreign(Helper):
    __module__ = "json.decoder"


def test_what_others_hold_is_not_touched():
    """A logger's queue must not get back what it has sent; but the generators of other packages' objects are kept."""
    thing = Foreign()
    thing.rng = random.Random(0)
    snapshot = Snapshot([{"thing": thing}])
    thing.count, drawn = 4, thing.rng.random()
    snapshot.restore()
    assert (thing.count, thing.rng.random()) == (4, drawn)


def test_tensors_without_bits_are_passed_over():
    Snapshot([nn.Linear(1, 1, device="meta")]).restore()


def test_what_holds_itself_is_no_endless_way():
    a: list = []
    a.append(a)
    Snapshot([a]).restore()
    assert a[0] is a
