import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_tuning import EMATeacherMixin, NormMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.mixins.architecture.norm import fitting_groups
from lightning_tuning.mixins.ghost_batch_norm import BatchNorm, GhostBatchNorm
from tests.mixins.tiny import FEATURES, Tiny, batches, convolution, deep, fit
from tests.numerics import array


class Net(NormMixin, Tiny):
    pass


class Taught(EMATeacherMixin, NormMixin, Tiny):
    pass


def network(norm: nn.Module) -> nn.Sequential:
    """For images ``[N, 2, 5, 5]``; a norm of 8 channels."""
    return nn.Sequential(nn.Conv2d(2, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))


def exchanged(norm: nn.Module, **arguments) -> nn.Module:
    return Net(network(norm), **arguments).network[1]


def normalised(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def formula(name: str, x: np.ndarray, groups: int = 4, ghost: int = 3, eps: float = 1e-5) -> np.ndarray:
    n, c = x.shape[:2]
    positions = tuple(range(2, x.ndim))
    if name in ("batch", "sync_batch"):
        return normalised(x, (0, *positions), eps)
    if name == "ghost_batch":
        parts = np.array_split(x, max(n // ghost, 1))
        return np.concatenate([normalised(part, (0, *positions), eps) for part in parts])
    parts = {"group": groups, "layer": 1, "instance": c}[name]
    grouped = x.reshape(n, parts, c // parts, *x.shape[2:])
    return normalised(grouped, tuple(range(2, grouped.ndim)), eps).reshape(x.shape)


NAMES = ("batch", "group", "layer", "instance", "ghost_batch", "sync_batch")
OLD = {
    "batch1": lambda: nn.BatchNorm1d(8),
    "batch": lambda: nn.BatchNorm2d(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm3d(8, affine=True),
    "sync": lambda: nn.SyncBatchNorm(8),
    "ghost": lambda: GhostBatchNorm(8, 5),
}


@pytest.mark.parametrize("shape", [(7, 8), (7, 8, 5), (7, 8, 3, 4), (6, 8, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", OLD)
def test_the_new_layer_computes_its_formula_for_any_shape(old, name, shape):
    if name == "instance" and len(shape) == 2:
        return  # test_instance_norm_of_single_values_is_refused
    # What is of the kind already stays, and takes its own shapes only.
    stays = name == old or (name == "batch" and old == "batch1")
    before = nn.GroupNorm(2, 8) if stays and name != "group" else OLD[old]()
    norm = exchanged(before.double(), norm_name=name, norm_groups=4, norm_ghost_size=3)
    x = 3 * torch.randn(shape, dtype=torch.float64) + 1
    assert norm.training
    np.testing.assert_allclose(array(norm(x)), formula(name, array(x)), atol=1e-9)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8)), norm.bias.fill_(0.5)
    scale = np.arange(8).reshape(1, 8, *[1] * (len(shape) - 2))
    np.testing.assert_allclose(array(norm(x)), formula(name, array(x)) * scale + 0.5, atol=1e-9)


@pytest.mark.parametrize("name", ["group", "layer", "instance"])
def test_no_sample_feels_another_and_evaluation_is_training(name):
    norm = exchanged(nn.BatchNorm2d(8), norm_name=name)
    x = torch.randn(4, 8, 3, 3)
    whole = norm(x)
    assert torch.equal(norm.eval()(x), whole)
    torch.testing.assert_close(torch.cat([norm(sample[None]) for sample in x]), whole)


def test_what_is_carried_over():
    old = nn.BatchNorm2d(8, eps=0.3, momentum=0.7)
    old.weight.data.fill_(5), old.bias.data.fill_(6), old.weight.requires_grad_(False), old.eval()
    for name in ("ghost_batch", "sync_batch", "group"):
        norm = exchanged(copy.deepcopy(old), norm_name=name)
        assert norm.eps == 0.3
        assert getattr(norm, "momentum", 0.7) == 0.7
        assert norm.weight.tolist() == [1] * 8
        assert norm.bias.tolist() == [0] * 8
        assert (norm.weight.requires_grad, norm.bias.requires_grad, norm.training) == (False, True, False)
    assert {*exchanged(nn.BatchNorm2d(8)).state_dict()} == {"weight", "bias"}
    batch_keys = {*nn.BatchNorm2d(8).state_dict()}
    assert {*exchanged(nn.GroupNorm(2, 8), norm_name="batch").state_dict()} == batch_keys
    assert [*exchanged(nn.BatchNorm2d(8, affine=False)).parameters()] == []
    assert exchanged(nn.BatchNorm2d(8, momentum=None), norm_name="ghost_batch").momentum is None
    assert not exchanged(nn.BatchNorm2d(8, track_running_stats=False), norm_name="ghost_batch").track_running_stats
    assert exchanged(nn.BatchNorm2d(8).to(torch.bfloat16)).weight.dtype == torch.bfloat16


def test_groups_that_do_not_fit():
    for channels in range(1, 70):
        for groups in (1, 2, 3, 8, 32, 64):
            fitting = [g for g in range(1, groups + 1) if channels % g == 0 and (channels // g >= 2 or g == 1)]
            assert fitting_groups(channels, groups) == max(fitting)
    assert exchanged(nn.BatchNorm2d(8)).num_groups == 4
    assert exchanged(nn.BatchNorm2d(8), norm_groups=3).num_groups == 2


@pytest.mark.parametrize("name", ["batch", "group", "ghost_batch"])
def test_a_layer_norms_channels_are_its_last_dimension(name):
    net = Net(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), norm_name=name, norm_ghost_size=2)
    x = torch.randn(5, 6, 8, dtype=torch.float64)
    expected = formula(name, np.moveaxis(array(x), -1, 1), groups=4, ghost=2)
    norm = copy.deepcopy(net).double().network[1]
    np.testing.assert_allclose(array(norm(x)), np.moveaxis(expected, 1, -1), atol=1e-9)
    assert {"network.1.weight", "network.1.bias"} <= net.state_dict().keys()


def test_layer_norms_that_stay():
    encoder = nn.TransformerEncoderLayer(8, 2, 8)
    image = nn.LayerNorm([8, 3, 3])
    net = Net(nn.Sequential(encoder, image, nn.BatchNorm2d(8)), norm_name="group")
    assert type(net.network[0].norm1) is nn.LayerNorm
    assert net.network[1] is image
    assert type(net.network[2]) is nn.GroupNorm
    no_bias = nn.LayerNorm(8, bias=False)
    net = Net(nn.Sequential(nn.Linear(4, 8), no_bias), norm_name="group")
    assert net.network[1].bias is None
    assert torch.isfinite(net(torch.randn(3, 4))).all()


def test_a_shared_layer_stays_shared():
    norm = nn.BatchNorm1d(4)
    net = Net(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm), norm_name="layer")
    assert net.network[1] is net.network[3]
    assert type(net.network[1]) is nn.GroupNorm


@pytest.mark.parametrize(("size", "parts"), [(12, [4, 4, 4]), (14, [5, 5, 4]), (7, [7]), (3, [3])])
def test_ghost_batches_are_batch_norms_of_the_parts(size, parts):
    ghost, plain = GhostBatchNorm(3, 4, momentum=0.3), nn.BatchNorm2d(3, momentum=0.3)
    nn.init.normal_(ghost.weight), nn.init.normal_(ghost.bias)
    plain.weight, plain.bias = ghost.weight, ghost.bias
    x = (2 * torch.randn(size, 3, 4, 4) + 1).requires_grad_()
    ours = ghost(x)
    theirs = torch.cat([plain(part) for part in x.split(parts)])
    torch.testing.assert_close(ours, theirs)
    probe = torch.randn_like(ours)
    gradients = [torch.autograd.grad((o * probe).sum(), [x, ghost.weight, ghost.bias]) for o in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    pieces = [array(part).swapaxes(0, 1).reshape(3, -1) for part in x.split(parts)]
    mean = np.mean([p.mean(1) for p in pieces], axis=0)
    variance = np.mean([p.var(1, ddof=1) for p in pieces], axis=0)
    np.testing.assert_allclose(array(ghost.running_mean), 0.3 * mean, rtol=1e-5)
    np.testing.assert_allclose(array(ghost.running_var), 0.7 + 0.3 * variance, rtol=1e-5)
    assert int(ghost.num_batches_tracked) == 1
    plain.load_state_dict(ghost.state_dict())
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


def test_ghost_batches_without_momentum_keep_the_plain_mean():
    ghost = GhostBatchNorm(3, 2, momentum=None)
    data = [torch.randn(4, 3) for _ in range(3)]
    for x in data:
        ghost(x)
    torch.testing.assert_close(ghost.running_mean, torch.cat(data).mean(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ghost_batches_of_other_precisions(dtype):
    ghost = GhostBatchNorm(3, 2).to(dtype if dtype == torch.float64 else torch.float32)
    assert ghost(torch.randn(6, 3, 2, dtype=dtype)).dtype == dtype
    free = GhostBatchNorm(3, 2, affine=False, track_running_stats=False)
    x = torch.randn(6, 3)
    np.testing.assert_allclose(array(free(x)), formula("ghost_batch", array(x), ghost=2), atol=1e-5)


@pytest.mark.parametrize("name", ["ghost_batch", "sync_batch", None])
def test_batch_statistics_of_one_sample_are_refused_in_the_first_step(name):
    image = network(nn.BatchNorm2d(8)) if name else network(nn.GroupNorm(2, 8))
    arguments = {"norm_name": name or "batch"}
    with pytest.raises(InvalidValueError) as caught:
        fit(Net(image, **arguments), batches(2, size=1, shape=(2, 5, 5)))
    message = str(caught.value)
    assert message.startswith("network.1 (")
    assert message.endswith("has one sample ([1, 8, 3, 3]). Raise the batch size, or use norm_name='group'.")
    fit(Net(network(nn.BatchNorm2d(8)), norm_name="group"), batches(2, size=1, shape=(2, 5, 5)))


def test_a_batch_norm_that_the_exchange_left_is_checked_too():
    class Own(nn.BatchNorm2d):
        pass

    mixed = nn.Sequential(nn.Conv2d(2, 8, 3), Own(8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(InvalidValueError, match=r"network\.1 \(Own\) takes its statistics from the batch"):
        fit(Net(mixed), batches(1, size=1, shape=(2, 5, 5)))
    mixed[1].eval()  # uses running statistics
    fit(Net(mixed, norm_name="layer"), batches(1, size=1, shape=(2, 5, 5)))


def test_the_check_is_gone_after_the_first_step():
    net = Net(convolution(), norm_name="ghost_batch")
    fit(net, [*batches(1, shape=(2, 5, 5)), *batches(1, size=1, shape=(2, 5, 5))])
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_instance_norm_of_single_values_is_refused():
    with pytest.raises(
        InvalidValueError, match=r"^network\.1 is an instance norm, but its input \[8, 8\] has one value"
    ):
        fit(Net(deep(), norm_name="instance"), batches(1))


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_with_every_kind(name):
    net = Net(network(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), norm_name=name, norm_ghost_size=4)
    data = batches(1, size=16, shape=(2, 5, 5)) * 20
    before = net.compute_loss(net(data[0][0]), data[0][1]).item()
    fit(net, data)
    assert net.compute_loss(net(data[0][0]), data[0][1]).item() < 0.5 * before


def test_a_teacher_copies_the_new_layers():
    net = Taught(nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, 3)), norm_name="group")
    fit(net, batches(2))
    student, teacher = net.network[1], net.ema_teacher.network[1]
    assert type(teacher) is nn.GroupNorm
    assert student is not teacher
    x = torch.randn(3, 5, 8)
    assert teacher(x).shape == x.shape


def test_torchs_sync_batch_norm_takes_the_ghosts():
    class Converts(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.network = nn.SyncBatchNorm.convert_sync_batchnorm(pl_module.network)

    with pytest.raises(MisconfigurationException, match=r"Trainer\(sync_batchnorm=True\) has replaced the layers"):
        fit(Net(convolution(), norm_name="ghost_batch"), batches(1), callbacks=[Converts()])


def test_sync_batch_on_cpu_processes_is_refused():
    net = Net(convolution(), norm_name="sync_batch")
    with pytest.raises(Exception, match="norm_name='sync_batch' synchronises processes on accelerators only"):
        fit(net, batches(2, shape=(2, 5, 5)), strategy="ddp_fork", devices=2)


@pytest.mark.parametrize(
    ("made", "arguments", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3)), {}, "Tiny has no norm layer of torch.nn after its __init__"),
        (deep(), {"norm_name": "batch"}, "every norm layer of Tiny is such a one already."),
        (network(nn.GroupNorm(4, 8)), {"norm_groups": 5}, "every norm layer of Tiny is such a one already."),
        (network(nn.InstanceNorm2d(8)), {"norm_name": "instance"}, "every norm layer of Tiny is such a one already."),
        (network(GhostBatchNorm(8, 4)), {"norm_name": "ghost_batch", "norm_ghost_size": 4}, "every norm layer of Tiny"),
        (network(BatchNorm(8)), {"norm_name": "batch"}, "every norm layer of Tiny is such a one already."),
    ],
)
def test_without_effect(made, arguments, reason):
    with pytest.raises(NoEffectError, match="NormMixin is on but can change nothing") as caught:
        fit(Net(made, **arguments), batches(1))
    assert reason in str(caught.value)


def test_off_leaves_the_network_alone():
    made = deep()
    net = Net(made, norm_name=None)
    assert type(net.network[1]) is nn.BatchNorm1d
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # torch's own
        fit(net, batches(1, size=1))


def test_wrong_arguments():
    for arguments, message in (
        ({"norm_name": "bach"}, "norm_name is 'bach'; did you mean 'batch'?"),
        ({"norm_groups": 0}, "norm_groups is 0; it must be a number in [1, inf)."),
        ({"norm_ghost_size": 1}, "norm_ghost_size is 1; it must be a number in [2, inf)."),
    ):
        with pytest.raises(InvalidValueError) as caught:
            Net(deep(), **arguments)
        assert str(caught.value).startswith(message)
