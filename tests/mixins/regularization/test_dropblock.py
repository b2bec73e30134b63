from __future__ import annotations

import copy
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import DropBlockMixin, EMATeacherMixin, ImageClassifier
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import NUM_CLASSES, Tiny, batches, fit, smooth
from tests.numerics import array


class Net(DropBlockMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, DropBlockMixin, Tiny):
    pass


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, NUM_CLASSES)),
    )


def hooked(net) -> list[str]:
    return [name for name, m in net.named_modules() if m._forward_pre_hooks]


def inputs_of(layer: nn.Module) -> list[np.ndarray]:
    """What a layer takes in from now on, after our hook."""
    seen: list[np.ndarray] = []
    layer.register_forward_pre_hook(lambda layer, args: seen.append(array(args[0])))
    return seen


def is_made_of_blocks(dropped: np.ndarray, rows: int, columns: int) -> bool:
    """Whether each pixel that is dropped in ``[H, W]`` lies in a block that is dropped wholly."""
    covered = np.zeros_like(dropped)
    for top in range(dropped.shape[0] - rows + 1):
        for left in range(dropped.shape[1] - columns + 1):
            if dropped[top : top + rows, left : left + columns].all():
                covered[top : top + rows, left : left + columns] = True
    return bool((covered == dropped).all())


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_maps_that_convolutions_take_in_lose_blocks(size):
    net = Net(network(), dropblock_rate=0.3, dropblock_size=size, dropblock_schedule="constant")
    x = torch.randn(16, 2, 10, 12)
    clean = array(net.network[1](net.network[0](x)) + 1)
    net.network[1] = nn.Sequential(net.network[1], Plus())
    seen = inputs_of(net.network[2])
    torch.manual_seed(0)
    net(x)
    (maps,) = seen
    dropped = maps == 0
    assert 0.1 < dropped.mean() < 0.35
    assert all(is_made_of_blocks(one, size, size) for one in dropped.reshape(-1, 10, 12))
    assert not all(is_made_of_blocks(one, size + 1, size) for one in dropped.reshape(-1, 10, 12))
    scale = dropped.size / (~dropped).sum()
    np.testing.assert_allclose(maps, np.where(dropped, 0, clean * scale), rtol=1e-5)


class Plus(nn.Module):
    def forward(self, x):
        return x + 1


def test_small_maps_lose_whole_channels_and_single_pixels_stay():
    net = Net(network(), dropblock_rate=0.3, dropblock_size=7, dropblock_schedule="constant")
    net.network[1] = nn.Sequential(net.network[1], Plus())
    small, pixels, pooled = inputs_of(net.network[2]), inputs_of(net.network[5]), []
    net.network[4].register_forward_hook(lambda layer, args, output: pooled.append(array(output)))
    torch.manual_seed(0)
    net(torch.randn(400, 2, 5, 4))
    dropped = (small[0] == 0).reshape(1600, 20)
    assert set(dropped.sum(1)) == {0, 20}
    assert dropped.mean() == pytest.approx(0.3, abs=4 * (0.21 / 1600) ** 0.5)
    np.testing.assert_array_equal(pixels[0], pooled[0])


def test_where_it_goes():
    assert hooked(Net(network())) == ["network.2", "network.3", "network.5"]
    assert hooked(Net(network(), dropblock_layers=r"network\.[02]")) == ["network.0", "network.2"]
    assert len(hooked(ImageClassifier(network="resnet18", dropblock_rate=0.1))) == 19
    assert len(hooked(ImageClassifier(network="wrn_16_2", dropblock_rate=0.1))) == 15


class Rates(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.seen += {hook.rate for hook in pl_module._dropblock.hooks.values()}


def test_the_rate_rises_over_the_run():
    rates = Rates()
    net = Net(network(), dropblock_rate=0.4, dropblock_size=3)
    data = batches(4, shape=(2, 8, 8))
    trainer = fit(net, data, max_epochs=2, accumulate_grad_batches=2, callbacks=[rates])
    assert rates.seen == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert trainer.callback_metrics["train/dropblock_epoch"].item() == pytest.approx(0.25)


def test_evaluation_and_a_teacher_drop_nothing():
    net = TaughtNet(network(), dropblock_rate=0.5, dropblock_size=3, ema_teacher_decay=0.0)
    fit(net, batches(2, shape=(2, 8, 8)))
    x = torch.randn(5, 2, 8, 8)
    bare = copy.deepcopy(net.network).eval()
    for m in bare.modules():
        m._forward_pre_hooks.clear()
    net.train()
    assert torch.equal(net.pseudo_logits(x), bare(x))
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), bare(x))


def test_copies_have_hooks_of_their_own():
    net = Net(network(), dropblock_rate=0.5, dropblock_size=3)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other._dropblock.set_rate(0.0)
        x = torch.randn(5, 2, 8, 8)
        assert torch.equal(other(x), other(x))
        assert not torch.equal(net(x), net(x))


def test_a_compiled_network_drops_the_same():
    net = Net(network(), dropblock_rate=0.5, dropblock_size=3)
    plain = copy.deepcopy(net)
    net.network.compile(backend="eager")
    outputs = []
    for module in (net, plain):
        torch.manual_seed(3)
        outputs.append(module(torch.ones(5, 2, 8, 8)))
    assert torch.equal(*outputs)


def test_off_registers_nothing():
    assert hooked(Net(network(), dropblock_rate=0.0)) == []


def test_no_effect():
    with pytest.raises(NoEffectError, match=r"Tiny has no 2-D convolution but its first\."):
        fit(Net(smooth()), batches(1))
    expected = r"dropblock_layers='conv\.\*' matches the whole name of none of its 2-D convolutions: 'network\.0', "
    with pytest.raises(NoEffectError, match=expected):
        fit(Net(network(), dropblock_layers="conv.*"), batches(1, shape=(2, 8, 8)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropblock_rate": 1.0}, r"dropblock_rate is 1\.0; it must be a number in \[0, 1\)\."),
        ({"dropblock_size": 0}, r"dropblock_size is 0; it must be a number in \[1, inf\)\."),
        ({"dropblock_size": 2.5}, r"dropblock_size is 2\.5; it must be a whole number of pixels\."),
        ({"dropblock_schedule": "cosine"}, r"dropblock_schedule is 'cosine'"),
        ({"dropblock_layers": "["}, r"dropblock_layers is '\[', which is no regular expression"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(network(), **arguments)
