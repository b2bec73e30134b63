"""Values against numpy in float64, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning.functional import population_statistics, recalibrate_batch_norm, tracking_batch_norms
from lightning_tuning.mixins.ghost_batch_norm import GhostBatchNorm


def data(rows=11, shape=(3, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 5 + 3 * torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def assert_statistics(layer, values):
    """The layer's statistics are those of ``values`` ``[channels, everything]``."""
    np.testing.assert_allclose(layer.running_mean.numpy(), values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), values.var(1, ddof=1), rtol=1e-12)


def by_channel(x):
    return x.numpy().swapaxes(0, 1).reshape(x.shape[1], -1)


@pytest.mark.parametrize("sizes", [[11], [4, 4, 3], [2, 9], [1, 10]])
def test_each_value_counts_the_same_whatever_its_batch(sizes):
    norm, x = nn.BatchNorm2d(3).double(), data()
    assert recalibrate_batch_norm(norm, x.split(sizes)) == len(sizes)
    assert_statistics(norm, by_channel(x))


def test_one_batch_is_what_torch_takes_with_momentum_1():
    ours, torchs, x = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3, momentum=1.0).double(), data(shape=(3,))
    recalibrate_batch_norm(ours, [x])
    torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-12, atol=0)


def test_a_far_mean_loses_no_digits_in_float32():
    norm, x = nn.BatchNorm1d(1), 1e4 + torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    recalibrate_batch_norm(norm, x.split(16))
    assert norm.running_var.item() == pytest.approx(x.double().var().item(), rel=1e-3)


def test_a_later_layer_sees_inputs_that_their_own_batch_normalised():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    x = data(shape=(3,))
    batches = x.split([4, 7])
    recalibrate_batch_norm(net, batches)
    weight, bias = net[2].weight.detach().numpy(), net[2].bias.detach().numpy()
    hidden = []
    for batch in batches:
        b = batch.numpy()
        b = (b - b.mean(0)) / np.sqrt(b.var(0) + 1e-5)
        hidden.append(np.tanh(b) @ weight.T + bias)
    assert_statistics(net[0], x.numpy().T)
    assert_statistics(net[3], np.concatenate(hidden).T)


def test_all_inputs_of_a_layer_that_is_used_twice_count():
    norm, x = nn.BatchNorm1d(3).double(), data(shape=(3,))
    recalibrate_batch_norm(norm, [x], forward=lambda x: (norm(x), norm(2 * x)))
    assert_statistics(norm, np.concatenate([x.numpy(), 2 * x.numpy()]).T)


def test_ghost_batch_norm_gets_the_statistics_of_all_values():
    norm, x = GhostBatchNorm(3, ghost_size=2).double(), data()
    recalibrate_batch_norm(norm, x.split(5))
    assert_statistics(norm, by_channel(x))


def test_nothing_else_changes():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.2), nn.BatchNorm1d(3).eval()).double()
    net[0].eval()
    x, flags, rng = data(shape=(3,)), [m.training for m in net.modules()], torch.get_rng_state()
    net[1].num_batches_tracked.fill_(7)
    recalibrate_batch_norm(net, [x, x])
    assert [m.training for m in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)
    assert net[1].momentum == 0.2
    assert net[1].track_running_stats
    assert net[1].num_batches_tracked == 7
    assert not net[1]._forward_pre_hooks
    net.train()
    recalibrate_batch_norm(net, [x, x])
    assert_statistics(net[1], np.concatenate([x.numpy()] * 2).T)  # not of dropped inputs


def test_a_pass_that_fails_leaves_the_statistics_and_flags():
    norm = nn.BatchNorm1d(3).eval()
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(norm, [torch.randn(4, 3), torch.randn(4, 2)])
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert not norm.training
    assert norm.track_running_stats
    assert not norm._forward_pre_hooks


def test_a_layer_without_input_keeps_its_statistics():
    norm = nn.BatchNorm1d(3)
    with population_statistics([norm]):
        pass
    assert torch.equal(norm.running_var, torch.ones(3))


def test_only_layers_with_running_statistics_are_taken():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.GroupNorm(1, 3))
    assert tracking_batch_norms(net) == [net[0]]
    recalibrate_batch_norm(net, [torch.randn(4, 3)])


def test_half_precision_inputs_are_counted_in_float32():
    norm, x = nn.BatchNorm1d(1), (100 + torch.randn(512, 1, generator=torch.Generator().manual_seed(2))).bfloat16()
    with population_statistics([norm]):
        norm(x[:256]), norm(x[256:])
    assert norm.running_mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
