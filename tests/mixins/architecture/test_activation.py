import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tuning import ActivationMixin, EMATeacherMixin, NormMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.mixins.architecture.activation import _LAYERS
from tests.mixins.tiny import Tiny, assert_same, batches, fit


class Net(ActivationMixin, Tiny):
    pass


class Taught(EMATeacherMixin, ActivationMixin, Tiny):
    pass


class ActivationFirst(ActivationMixin, NormMixin, Tiny):
    pass


class NormFirst(NormMixin, ActivationMixin, Tiny):
    pass


class Late(nn.Module):
    """Registers its one activation behind the layers and calls it twice."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.act = self.same = act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(self.second(self.act(self.first(x)))))


class Gated(nn.Module):
    """Squeeze and excitation: the sigmoid is a gate, the other activation hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 4), nn.Sigmoid())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.weigh(x).view_as(x))


class Untraceable(nn.Module):
    """Its forward depends on values, so the order of registration counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head, self.out = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.act(self.body(x)))) if x.sum() < 1e9 else x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def mlp(act, *end) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 3), *end)


FORMULAS = {
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
    "relu": lambda z: z * (z > 0),
    "relu6": lambda z: z.clamp(0, 6),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "elu": lambda z: torch.where(z > 0, z, z.exp() - 1),
    "celu": lambda z: torch.where(z > 0, z, z.exp() - 1),
    "selu": lambda z: 1.0507009873554805 * torch.where(z > 0, z, 1.6732632423543772 * (z.exp() - 1)),
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "silu": lambda z: z / (1 + (-z).exp()),
    "mish": lambda z: z * (1 + z.exp()).log().tanh(),
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
    "softplus": lambda z: (1 + z.exp()).log(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_network_computes_with_the_named_formula(name):
    assert FORMULAS.keys() == _LAYERS.keys()
    old = nn.ReLU() if name != "relu" else nn.Tanh()
    net = Net(mlp(old).double(), activation_name=name)
    x = 3 * torch.randn(50, 4, dtype=torch.float64)
    first, head = net.network[0], net.network[2]
    expected = FORMULAS[name](x @ first.weight.T + first.bias) @ head.weight.T + head.bias
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


OLD = [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Tanh(), nn.Sigmoid()]


@pytest.mark.parametrize("old", [*OLD, nn.GELU(), nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.Hardtanh(), nn.RReLU()])
def test_every_kind_is_exchanged(old):
    net = Net(mlp(old), activation_name="silu")
    assert type(net.network[1]) is nn.SiLU
    assert [*net.state_dict()] == [*Tiny(mlp(nn.ReLU())).state_dict()]


def test_softmax_and_gated_units_stay():
    net = Net(nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Softmax(1), nn.ReLU(), nn.Linear(3, 3)))
    assert [type(m) for m in net.network[1:4]] == [nn.GLU, nn.Softmax, nn.GELU]


def test_a_shared_layer_stays_shared():
    net = Net(Late(nn.ReLU(inplace=True)), activation_name="silu")
    assert net.network.act is net.network.same
    assert type(net.network.act) is nn.SiLU
    two = nn.ReLU()
    net = Net(nn.Sequential(nn.Linear(4, 4), two, nn.Linear(4, 4), two, nn.Linear(4, 3)), activation_name="tanh")
    assert net.network[1] is net.network[3]
    assert type(net.network[1]) is nn.Tanh


@pytest.mark.parametrize("in_place", [True, False])
def test_in_place_is_kept(in_place):
    assert Net(mlp(nn.ReLU(inplace=in_place)), activation_name="elu").network[1].inplace is in_place
    for name in FORMULAS:  # and its gradient is that of the other form
        nets = [Net(mlp(nn.LeakyReLU(0.3, flag)), activation_name=name) for flag in (True, False)]
        nets[1].load_state_dict(nets[0].state_dict())
        x = torch.randn(6, 4)
        gradients = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in nets]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("out", [nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.Softplus()])
def test_what_follows_the_last_layer_stays(out):
    net = Net(mlp(nn.ELU(), nn.Flatten(), out, nn.Dropout(0.1)), activation_name="mish")
    assert type(net.network[1]) is nn.Mish
    assert net.network[4] is out


def test_a_gate_stays():
    net = Net(Gated(), activation_name="mish")
    assert [type(m) for m in net.network.weigh] == [nn.Linear, nn.Mish, nn.Linear, nn.Sigmoid]


def test_registration_order_stands_for_a_forward_that_depends_on_values():
    net = Net(Untraceable(), activation_name="mish")
    assert (type(net.network.act), type(net.network.out)) == (nn.Mish, nn.Tanh)


def test_the_expression_chooses_by_whole_names():
    network = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 3), nn.Sigmoid())
    net = Net(network, activation_name="tanh", activation_layers=r"network\.(1|13)")
    tanhs = [i for i, m in enumerate(net.network) if type(m) is nn.Tanh]
    assert tanhs == [1, 13]  # not 11; and the output, because it is named


def test_a_transformers_function():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    x, mask = torch.randn(3, 5, 4), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    for name, function, flag in (("gelu", F.gelu, 2), ("silu", F.silu, 0), ("softplus", F.softplus, 0)):
        net = Net(nn.Sequential(copy.deepcopy(encoder), nn.Linear(4, 3)), activation_name=name)
        reference = copy.deepcopy(encoder)
        for own in reference.layers:
            own.activation, own.activation_relu_or_gelu = function, 0
        reference.use_nested_tensor = False
        assert [own.activation_relu_or_gelu for own in net.network[0].layers] == [flag, flag]
        for train in (True, False):  # evaluation without gradients takes the fast path
            net.train(train), reference.train(train)
            with torch.no_grad():
                ours, theirs = (f(x, src_key_padding_mask=mask) for f in (net.network[0], reference))
            torch.testing.assert_close(ours[~mask], theirs[~mask], rtol=1e-5, atol=1e-6)
        assert [*net.network[0].state_dict()] == [*encoder.state_dict()]
    with pytest.raises(NoEffectError, match="is ReLU already"):
        fit(
            Net(nn.Sequential(encoder, nn.Flatten(), nn.Linear(4, 3)), activation_name="relu"), batches(1, shape=(1, 4))
        )


def test_either_order_with_the_norm_mixin_gives_the_same_network():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(),
        )  # fmt: skip

    nets = [kind(network(), activation_name="silu", norm_name="group") for kind in (ActivationFirst, NormFirst)]
    assert str(nets[0].network) == str(nets[1].network)
    assert [type(nets[0].network[i]).__name__ for i in (1, 2, 8)] == ["GroupNorm", "SiLU", "Sigmoid"]
    for net in nets:
        fit(net, batches(3, shape=(2, 5, 5)))
    assert_same(nets[0].state_dict(), nets[1].state_dict())


class Doubles:
    def __call__(self, module, args, output):
        return 2 * output


def test_hooks_move_along():
    act = nn.ReLU()
    act.register_forward_hook(Doubles())
    net = Net(mlp(act), activation_name="tanh")
    x = torch.randn(3, 4)
    assert torch.equal(net.network[1](x), 2 * x.tanh())


def test_copies_and_a_teacher_have_it():
    net = Taught(mlp(nn.ReLU()), activation_name="tanh")
    fit(net, batches(3))
    assert type(net.ema_teacher.network[1]) is nn.Tanh
    copied = pickle.loads(pickle.dumps(Net(mlp(nn.ReLU()), activation_name="tanh")))
    assert type(copied.network[1]) is nn.Tanh


def test_off_leaves_the_network_alone():
    network = mlp(nn.ReLU())
    layers = [*network]
    net = Net(network, activation_name=None, activation_layers="network.1")
    assert all(a is b for a, b in zip(net.network, layers, strict=True))
    fit(net, batches(1))


@pytest.mark.parametrize(
    ("network", "arguments", "reason"),
    [
        (Functional(), {}, "Tiny has no activation layer after its __init__. Functions such as F.relu(x) cannot be"),
        (mlp(nn.GELU()), {}, "every activation layer of Tiny that it may exchange is GELU already."),
        (mlp(nn.Identity(), nn.Sigmoid()), {}, "the activation layers of Tiny (network.3) are outputs or gates"),
        (
            mlp(nn.ReLU()),
            {"activation_layers": "network.10"},
            "activation_layers='network.10' matches none of network.1.",
        ),
    ],
)
def test_without_effect(network, arguments, reason):
    with pytest.raises(NoEffectError) as caught:
        fit(Net(network, **arguments), batches(1))
    assert f"ActivationMixin is on but can change nothing: {reason}" in str(caught.value)


def test_wrong_arguments():
    with pytest.raises(
        InvalidValueError,
        match=r"activation_name is 'swish'; did you mean 'hardswish'\? It must be one of 'relu', .*'sigmoid'\.",
    ):
        Net(mlp(nn.ReLU()), activation_name="swish")
    with pytest.raises(
        InvalidValueError, match=r"activation_layers is '\(', which is no regular expression: missing \)"
    ):
        Net(mlp(nn.ReLU()), activation_layers="(")
