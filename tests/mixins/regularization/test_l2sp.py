import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, L2SPMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, deep, fit, smooth
from tests.numerics import array


class Net(L2SPMixin, Tiny):
    pass


class TaughtNet(SAMMixin, EMATeacherMixin, L2SPMixin, Tiny):
    pass


def matrices(net):
    return {n: array(p).copy() for n, p in net.named_parameters() if "teacher" not in n and p.ndim >= 2}


def task_loss(net, batch):
    return F.cross_entropy(net.network(batch[0]), batch[1]).item()


def penalty(net, start):
    now = matrices(net)
    assert now.keys() == start.keys()
    return sum(((now[name] - start[name]) ** 2).sum() for name in now) / 2


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
def test_loss_and_gradient(network, shape):
    net = Net(network().eval(), l2sp_weight=0.3)
    x, ids = batches(1, shape=shape)[0]
    start = matrices(net)
    assert net.training_step((x, ids), 0).item() == task_loss(net, (x, ids))  # at the start the distance is 0
    with torch.no_grad():
        for p in net.network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    loss = net.training_step((x, ids), 0)
    assert loss.item() == pytest.approx(task_loss(net, (x, ids)) + 0.3 * penalty(net, start), rel=1e-6)
    parameters = dict(net.named_parameters())
    ours = torch.autograd.grad(loss, parameters.values())
    bare = torch.autograd.grad(F.cross_entropy(net.network(x), ids), parameters.values())
    for (name, p), with_penalty, without in zip(parameters.items(), ours, bare, strict=True):
        expected = 0.3 * (array(p) - start[name]) if name in start else np.zeros(p.shape)
        np.testing.assert_allclose(array(with_penalty - without), expected, atol=1e-6, err_msg=name)


def test_a_run_is_torchs_sgd_on_the_written_loss():
    net = Net(smooth().double(), l2sp_weight=0.5)
    twin, data = copy.deepcopy(net.network), batches(5, dtype=torch.float64)
    fit(net, data, precision="64-true")
    start = copy.deepcopy(twin)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for x, ids in data:
        gradients = torch.autograd.grad(F.cross_entropy(twin(x), ids), list(twin.parameters()))
        for p, p0, gradient in zip(twin.parameters(), start.parameters(), gradients, strict=True):
            p.grad = gradient + (0.5 * (p - p0).detach() if p.ndim == 2 else 0)
        optimizer.step()
    for a, b in zip(net.network.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=1e-12)


def test_a_large_weight_holds_the_network_where_it_was():
    distances = []
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        net = Net(smooth(), l2sp_weight=weight, momentum=0.0)
        start = matrices(net)
        fit(net, batches(20))
        distances.append(penalty(net, start))
    assert distances[1] < 0.05 * distances[0]


class LoadsLate(pl.Callback):
    """Puts pretrained weights in when the run begins."""

    def on_fit_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.network[0].weight.fill_(0.25)


def test_the_start_is_that_of_the_first_fit_and_stays():
    net = Net(smooth(), l2sp_weight=0.1)
    with torch.no_grad():
        net.network[2].weight.fill_(0.5)  # after construction
    fit(net, batches(3), callbacks=[LoadsLate()])
    start = matrices(net) | {"network.0.weight": np.full((8, 4), 0.25), "network.2.weight": np.full((3, 8), 0.5)}
    batch = batches(1)[0]
    for _ in range(2):
        assert penalty(net, start) > 1e-3
        expected = task_loss(net, batch) + 0.1 * penalty(net, start)
        assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
        fit(net, batches(3))


def test_a_resumed_run_and_a_loaded_one_keep_the_start(tmp_path):
    net = Net(smooth(), l2sp_weight=0.1)
    start = matrices(net)
    fit(net, batches(3)).save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    batch = batches(1)[0]

    resumed = Net(smooth(), l2sp_weight=0.1)
    fit(resumed, batches(3), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    loaded = Net.load_from_checkpoint(tmp_path / "a.ckpt", network=smooth(), l2sp_weight=0.1, weights_only=True)
    assert_same(loaded.state_dict(), net.state_dict())
    for other in (resumed, loaded):
        assert penalty(other, start) > 1e-3
        expected = task_loss(other, batch) + 0.1 * penalty(other, start)
        assert other.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_of_a_run_without_it_is_the_start(tmp_path):
    bare = Tiny(smooth())
    fit(bare, batches(3)).save_checkpoint(tmp_path / "a.ckpt")
    net = Net(smooth(), l2sp_weight=0.1)
    fit(net, batches(3), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    batch = batches(1)[0]
    expected = task_loss(net, batch) + 0.1 * penalty(net, matrices(bare))
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_the_start_is_no_weight_and_no_buffer():
    """So the optimizer, DDP's broadcast and a checkpoint's state_dict do not meet it."""
    net = Net(smooth(), l2sp_weight=0.1)
    names = [*net.state_dict()]
    trainer = fit(net, batches(2))
    assert [*net.state_dict()] == names == [*Tiny(smooth()).state_dict()]
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == 4
    assert not any(start.requires_grad for start in net._l2sp_start.values())


class Unfreezes(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.network[0].requires_grad_(batch_idx >= 2)


def test_a_frozen_layer_is_left_out_and_joins_when_it_is_unfrozen():
    net = Net(smooth(), l2sp_weight=0.5)
    start = matrices(net)
    net.network[0].requires_grad_(False)
    batch = batches(1)[0]
    net.training_step(batch, 0)
    with torch.no_grad():
        net.network[2].weight.add_(0.1)
        net.network[0].weight.add_(0.1)  # by hand: not trained, so it is still to start
    start["network.0.weight"] = matrices(net)["network.0.weight"]
    expected = task_loss(net, batch) + 0.5 * penalty(net, start)
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)
    fit(net, batches(5), callbacks=[Unfreezes()])
    expected = task_loss(net, batch) + 0.5 * penalty(net, start)
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
    assert np.abs(matrices(net)["network.0.weight"] - start["network.0.weight"]).max() > 1e-3


def test_a_layer_of_another_shape_in_the_old_ones_place_starts_anew():
    net = Net(smooth(), l2sp_weight=0.5)
    start = matrices(net)
    fit(net, batches(3))
    net.network[2] = nn.Linear(8, 1)  # would broadcast against the old 3 x 8
    net.network.append(nn.Linear(1, 3))
    batch = batches(1)[0]
    moved = ((matrices(net)["network.0.weight"] - start["network.0.weight"]) ** 2).sum() / 2
    assert net.training_step(batch, 0).item() == pytest.approx(task_loss(net, batch) + 0.5 * moved, rel=1e-5)


def test_beside_a_teacher_and_sam():
    """The teacher is neither penalized nor has a start of its own; SAM's climb is not taken for a start."""
    net = TaughtNet(smooth(), l2sp_weight=0.5, ema_teacher_decay=0.5, sam_rho=0.5)
    start = matrices(net)
    fit(net, batches(4))
    assert net._l2sp_start.keys() == start.keys()
    for name, value in start.items():
        np.testing.assert_array_equal(array(net._l2sp_start[name]), value)
    assert [*net.ema_teacher.state_dict()] == [*Tiny(smooth()).state_dict()]
    batch = batches(1)[0]
    expected = task_loss(net, batch) + 0.5 * penalty(net, start)
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_the_term_is_recorded_without_its_weight():
    net = Net(smooth(), l2sp_weight=0.5, lr=0.0)
    start = matrices(net)
    fit(net, batches(1))
    with torch.no_grad():
        net.network[0].weight.add_(0.1)
    trainer = fit(net, batches(2))
    assert penalty(net, start) == pytest.approx(8 * 4 * 0.1**2 / 2, rel=1e-5)
    assert trainer.callback_metrics["train/l2sp_epoch"].item() == pytest.approx(penalty(net, start), rel=1e-5)


def test_off_adds_nothing_and_keeps_nothing():
    net = Net(l2sp_weight=0)
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == task_loss(net, batch)
    assert net._l2sp_start == {}


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(l2sp_weight=-1)
    assert str(caught.value) == "l2sp_weight is -1; it must be a number in [0, inf)."
