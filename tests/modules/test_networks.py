import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_tuning.errors import InvalidValueError, check_choice
from lightning_tuning.modules import Classifier
from lightning_tuning.modules.networks import build_network
from lightning_tuning.modules.networks.basic import ChannelsLast
from lightning_tuning.modules.networks.wide_resnet import PreActivationBlock

NAMES = ["mlp", "cnn", "resnet18", "wrn_16_2"]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 20)])
def test_images_become_logits_that_every_weight_has_a_part_in(name, channels, size):
    network = build_network(name, in_channels=channels, num_classes=7, image_size=size)
    logits = network(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("resnet18", 3, 11_173_962),  # as published for CIFAR-10
        ("wrn_16_2", 3, 691_674),
        ("mlp", 3, (3 * 16 * 16 + 1) * 256 + 257 * 256 + 257 * 10),
        ("cnn", 1, 9 * (16 + 16 * 64 + 64 * 128) + 2 * (16 + 64 + 128) + 129 * 10),
    ],
)
def test_parameter_counts(name, channels, parameters):
    assert count(build_network(name, in_channels=channels)) == parameters


def test_resnet18_stem_keeps_the_image_and_stages_halve_it():
    shapes = []
    network = build_network("resnet18", in_channels=3)
    for layer in network:
        layer.register_forward_hook(lambda layer, args, out: shapes.append(tuple(out.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    stages = [shape for shape in dict.fromkeys(shapes) if len(shape) == 3]
    assert stages == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 1, 1)]


def test_wide_block_equals_the_paper_s_pre_activation_order():
    torch.manual_seed(0)
    block = PreActivationBlock(4, 6, stride=2).eval()
    x = torch.randn(2, 4, 8, 8)
    active = F.relu(F.batch_norm(x, torch.zeros(4), torch.ones(4)))
    inner = F.conv2d(active, block.conv1.weight, stride=2, padding=1)
    inner = F.relu(F.batch_norm(inner, torch.zeros(6), torch.ones(6)))
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_he_normal_and_biases_zero(name):
    torch.manual_seed(0)
    network = build_network(name, in_channels=3, num_classes=100, image_size=16)
    head = network[-1]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
        if isinstance(module, nn.Linear):
            gain = 1 if module is head else 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(gain / module.in_features), rel=0.05)
        if getattr(module, "bias", None) is not None:
            assert module.bias.abs().max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_the_layout_only(channels):
    x = torch.randn(5, channels, 6, 4)
    out = ChannelsLast()(x)
    assert torch.equal(out, x)
    assert out.stride() == (24 * channels, 1, 4 * channels, channels)


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build_network("cnn").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"network is 'resnet19'; did you mean 'resnet18'\? It must be one of 'mlp', 'cnn'"),
        ({"name": "zzz"}, r"network is 'zzz'. It must be one of 'mlp', 'cnn', 'resnet18', 'wrn_16_2', or an nn.Module"),
        ({"name": "cnn", "num_classes": 0}, r"num_classes is 0; it must be a number in \[1, inf\)"),
        ({"name": "cnn", "in_channels": 0}, r"in_channels is 0"),
        ({"name": "mlp", "image_size": 0}, r"image_size is 0"),
    ],
)
def test_errors_say_what_to_write(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        build_network(**arguments)


def test_a_value_that_is_no_string_gets_no_guess():
    with pytest.raises(InvalidValueError, match=r"^network is 3. It must be one of 'cnn', or a module\.$"):
        check_choice("network", 3, ["cnn"], "a module")


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "wrn_16_2"])
def test_dropout_zeroes_the_features_before_the_head(name):
    network = build_network(name, image_size=8, dropout=0.4)
    head = network[-1]
    seen = []
    head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for training in (True, False):
        network.train(training)(torch.rand(64, 1, 8, 8) + 1)
    trained, evaluated = ((features == 0).float().mean().item() for features in seen)
    assert 1 - (1 - evaluated) * 0.6 == pytest.approx(trained, abs=0.1)
    assert trained > evaluated + 0.1


def test_dropout_of_a_given_network_is_refused():
    with pytest.raises(InvalidValueError, match=r"dropout is 0\.2, but it is for a network given by name"):
        Classifier(network=nn.Linear(3, 10), dropout=0.2)
