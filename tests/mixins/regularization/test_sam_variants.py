"""GSAM, the interval between second passes, and the ascent per device, against computations of their own."""

import copy
import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy

from lightning_tuning import SAMMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, assert_same, batches, deep, fit, linear, parameters, smooth
from tests.numerics import array

from .sam_reference import reference


class Net(SAMMixin, Tiny):
    pass


def gradient(network, weights, batch):
    """Float64 gradient of the cross entropy at ``weights``, as one vector."""
    copied = copy.deepcopy(network)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), copied.parameters())
    parts = torch.autograd.grad(F.cross_entropy(copied(batch[0]), batch[1]), copied.parameters())
    return np.concatenate([array(part).ravel() for part in parts])


def vector(module):
    return array(torch.nn.utils.parameters_to_vector(module.parameters()))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gsam_against_numpy(alpha):
    network, data, rho, lr = smooth().double(), batches(5, dtype=torch.float64), 0.5, 0.1
    net = Net(copy.deepcopy(network), lr=lr, momentum=0.0, sam_rho=rho, sam_gsam_alpha=alpha)
    fit(net, data, precision="64-true")
    w = vector(network)
    for batch in data:
        g = gradient(network, w, batch)
        g_p = gradient(network, w + rho * g / np.linalg.norm(g), batch)
        parallel = (g @ g_p) / (g_p @ g_p) * g_p
        w = w - lr * (g_p - alpha * (g - parallel))
    np.testing.assert_allclose(vector(net.network), w, rtol=1e-10)


def run(network, **kwargs):
    net = Net(copy.deepcopy(network), sam_rho=0.3, **kwargs)
    torch.manual_seed(5)
    fit(net, batches(5))
    return net


def test_gsam_at_0_is_sam_bitwise_and_is_not_sam_elsewhere():
    network = deep()
    sam, off, on = run(network), run(network, sam_gsam_alpha=0.0), run(network, sam_gsam_alpha=0.4)
    assert_same(sam.state_dict(), off.state_dict())
    assert not torch.equal(parameters(sam)[0], parameters(on)[0])


def test_gsam_under_fp16_steps_as_under_fp32():
    network, data = smooth(), batches(3)
    settings = {"sam_rho": 0.2, "sam_gsam_alpha": 2.0, "lr": 1.0, "momentum": 0.0}
    nets = [Net(copy.deepcopy(network), **settings) for _ in range(2)]
    fit(nets[0], data[:1])
    fit(nets[1], data[:1], precision="16-mixed")
    np.testing.assert_allclose(vector(nets[1].network), vector(nets[0].network), atol=4e-3)
    assert np.linalg.norm(vector(nets[0].network) - vector(network)) > 0.1


@pytest.mark.parametrize(("interval", "window"), [(2, 1), (3, 1), (2, 2)])
def test_between_second_passes_the_steps_are_plain(interval, window):
    """The reference at radius 0 makes plain steps; without momentum each step stands alone."""
    own, data = smooth(), batches(7 * window)
    net = Net(copy.deepcopy(own), momentum=0.0, sam_rho=0.3, sam_interval=interval)
    passes = []
    net.network.register_forward_hook(lambda *_: passes.append(1))
    fit(net, data, accumulate_grad_batches=window)
    for step in range(7):
        part = data[step * window : (step + 1) * window]
        reference(own, part, 0.3 if step % interval == 0 else 0.0, momentum=0.0, window=window)
    assert_same(net.network.state_dict(), own.state_dict())
    assert len(passes) == window * (7 + math.ceil(7 / interval))


class Overflow(pl.Callback):
    """Makes the gradient of some batches infinite, and notes after each batch how many steps counted."""

    def __init__(self, *steps):
        self.steps, self.counted, self.passes = steps, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.passes.append(0)

    def on_after_backward(self, trainer, pl_module):
        self.passes[-1] += 1
        if trainer.fit_loop.epoch_loop.batch_idx in self.steps:
            pl_module.network[0].weight.grad[0, 0] = math.inf

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.counted.append(pl_module._sam_steps)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    net, overflow = Net(smooth(), sam_rho=0.1, sam_interval=2), Overflow(1, 2)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    fit(net, batches(6), callbacks=[overflow], precision="16-mixed")
    assert overflow.counted == [1, 1, 1, 2, 3, 4]
    assert overflow.passes == [2, 1, 1, 1, 2, 1]


class SkippingNet(SAMMixin, Tiny):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


def test_a_batch_that_training_step_skips_does_not_count():
    net, overflow = SkippingNet(smooth(), sam_rho=0.1, sam_interval=2), Overflow()
    fit(net, batches(4), callbacks=[overflow])
    assert overflow.counted == [1, 1, 2, 3]


@pytest.mark.parametrize("interval", [1, 3])
def test_the_count_travels_in_the_checkpoint_and_not_in_the_weights(interval, tmp_path):
    network, data = smooth(), batches(4)
    settings = {"sam_rho": 0.3, "sam_interval": interval}
    straight = Net(copy.deepcopy(network), **settings)
    fit(straight, data, max_epochs=2)
    first = Net(copy.deepcopy(network), **settings)
    fit(first, data).save_checkpoint(tmp_path / "a.ckpt")
    resumed = Net(smooth(), **settings)
    fit(resumed, data, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert_same(straight.state_dict(), resumed.state_dict())
    assert ("sam_steps" in torch.load(tmp_path / "a.ckpt", weights_only=True)) is (interval > 1)
    other = Net(smooth(), sam_rho=0.3, sam_interval=4 - interval)
    fit(other, data, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")  # another setting takes the checkpoint too


class Shared(Tiny):
    """Each rank takes its half of every batch."""

    def training_step(self, batch, batch_idx):
        share = slice(self.global_rank, None, self.trainer.world_size)
        return super().training_step([part[share] for part in batch], batch_idx)


class SharedNet(SAMMixin, Shared):
    pass


class SaveRank(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.network.state_dict(), self.folder / f"{trainer.global_rank}.pt")


def on_two_ranks(net, data, folder, **kwargs):
    settings = {"strategy": "ddp_fork", "devices": 2, "precision": "64-true", "use_distributed_sampler": False}
    fit(net, data, callbacks=[SaveRank(folder)], **{**settings, **kwargs})
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert_same(*ranks)
    return np.concatenate([array(value).ravel() for value in ranks[0].values()])


@pytest.mark.parametrize("ascent", ["per_device", "synchronized"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("interval", [1, 2])
def test_the_ascent_of_two_ranks_against_numpy(ascent, window, interval, tmp_path):
    network, rho, lr = smooth().double(), 0.5, 0.1
    data = batches(4 * window, dtype=torch.float64)
    net = SharedNet(copy.deepcopy(network), lr=lr, momentum=0.0, sam_rho=rho, sam_ascent=ascent, sam_interval=interval)
    ended = on_two_ranks(net, data, tmp_path, accumulate_grad_batches=window)
    w = vector(network)
    for step in range(4):
        part = data[step * window : (step + 1) * window]
        halves = [[(x[rank::2], ids[rank::2]) for x, ids in part] for rank in (0, 1)]

        def of(rank, at, halves=halves):
            return np.mean([gradient(network, at, batch) for batch in halves[rank]], axis=0)

        first = [of(0, w), of(1, w)]
        mean = (first[0] + first[1]) / 2
        if step % interval:
            w = w - lr * mean
            continue
        ascents = first if ascent == "per_device" else [mean, mean]
        tops = [w + rho * g / np.linalg.norm(g) for g in ascents]
        w = w - lr * (of(0, tops[0]) + of(1, tops[1])) / 2
    np.testing.assert_allclose(ended, w, rtol=1e-10)


@pytest.mark.parametrize("as_view", [False, True])
def test_gsam_on_two_ranks_is_one_process(as_view, tmp_path):
    """Also where DDP keeps the gradients as views of its buckets, which the second pass fills again."""
    network, data = smooth().double(), batches(4, dtype=torch.float64)
    nets = [SharedNet(copy.deepcopy(network), sam_rho=0.5, sam_gsam_alpha=0.7) for _ in range(2)]
    strategy = DDPStrategy(start_method="fork", gradient_as_bucket_view=as_view)
    ended = on_two_ranks(nets[0], data, tmp_path, strategy=strategy, accumulate_grad_batches=2)
    fit(nets[1], data, precision="64-true", accumulate_grad_batches=2)
    np.testing.assert_allclose(ended, vector(nets[1].network), rtol=1e-10)


def test_per_device_on_one_device_is_synchronized_bitwise():
    network = deep()
    assert_same(run(network).state_dict(), run(network, sam_ascent="per_device").state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sam_gsam_alpha": -1}, r"sam_gsam_alpha is -1; it must be a number in \[0, inf\)"),
        ({"sam_interval": 0}, "sam_interval is 0; it must be an integer of at least 1"),
        ({"sam_interval": True}, "sam_interval is True"),
        ({"sam_ascent": "per_devise"}, "sam_ascent is 'per_devise'; did you mean 'per_device'?"),
        ({"sam_ascent": "per_device", "sam_gsam_alpha": 0.4}, "Write sam_ascent='synchronized' or sam_gsam_alpha=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(linear(), **arguments)


def test_the_plan_counts_the_passes_of_an_interval():
    assert Net(sam_rho=0.1, sam_interval=4, sam_gsam_alpha=0.4).extra_cost()[:2] == (0.25, 0.25)
    assert Net(sam_rho=0.1).extra_cost()[:2] == (1, 1)
