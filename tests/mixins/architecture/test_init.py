import copy
import math
import random
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import (
    EMATeacherMixin,
    FixMatchMixin,
    ImageClassifier,
    InitMixin,
    L2SPMixin,
    NormMixin,
    SAMMixin,
    compose,
)
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.functional import activation_gain, init_weight_
from tests.contract.nets import InTurns
from tests.mixins.tiny import NUM_CLASSES, Tiny, assert_same, batches, fit, streams
from tests.numerics import array


class Net(InitMixin, Tiny):
    pass


def drawn(network: nn.Module, seed: int = 5, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return Net(network, **arguments).network


def layers() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3, groups=2), nn.SELU()),
        *(nn.Flatten(), nn.Linear(8, 5), nn.Dropout(0.1), nn.Tanh(), nn.Linear(5, 3)),
    )


GAINS = {0: math.sqrt(2 / 1.04), 3: 1.0, 6: 5 / 3, 9: 1.0}
TORCHS = {
    "xavier_uniform": lambda w, gain: nn.init.xavier_uniform_(w, gain),
    "xavier_normal": lambda w, gain: nn.init.xavier_normal_(w, gain),
    "kaiming_uniform": lambda w, gain: nn.init.uniform_(w, -bound(w, gain), bound(w, gain)),
    "kaiming_normal": lambda w, gain: nn.init.normal_(w, 0, gain / math.sqrt(w[0].numel())),
    "orthogonal": lambda w, gain: nn.init.orthogonal_(w, gain),
    "lsuv": lambda w, gain: nn.init.orthogonal_(w, 1.0),
}


def bound(weight: Tensor, gain: float) -> float:
    return math.sqrt(3 / weight[0].numel()) * gain


@pytest.mark.parametrize("gain", [None, 0.7])
@pytest.mark.parametrize("method", TORCHS)
def test_each_method_is_torchs_with_the_gain_of_the_following_activation(method, gain):
    if method == "lsuv" and gain:
        return  # test_wrong_arguments
    network = drawn(layers(), init_method=method, init_gain=gain)
    torch.manual_seed(5)
    for i, own in GAINS.items():
        expected = TORCHS[method](torch.empty_like(network[i].weight), own if gain is None else gain)
        torch.testing.assert_close(network[i].weight.detach(), expected, rtol=2e-6, atol=1e-8, msg=f"layer {i}")
        assert not network[i].bias.any()


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_kaiming_is_torchs_bitwise(activation, kind):
    act = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "leaky_relu": nn.LeakyReLU()}[activation]
    network = drawn(
        nn.Sequential(nn.Conv2d(2, 6, 3), act, nn.Flatten(), nn.Linear(54, 3)), init_method=f"kaiming_{kind}"
    )
    torch.manual_seed(5)
    torchs = getattr(nn.init, f"kaiming_{kind}_")
    slope = 0.01 if activation == "leaky_relu" else 0
    assert torch.equal(network[0].weight, torchs(torch.empty(6, 2, 3, 3), a=slope, nonlinearity=activation))
    assert torch.equal(network[3].weight, torchs(torch.empty(3, 54), nonlinearity="linear"))


FANS = {"xavier": lambda i, o: 2 / (i + o), "kaiming": lambda i, o: 1 / i, "truncated": lambda i, o: 1 / i}
BIG = {
    "linear": (nn.Linear(300, 200), 300, 200),
    "conv": (nn.Conv2d(40, 60, 5), 1000, 1500),
    "grouped": (nn.Conv1d(80, 120, 7, groups=4), 140, 840),
    "transposed": (nn.ConvTranspose2d(40, 60, 5), 1000, 1500),
    "grouped_transposed": (nn.ConvTranspose1d(80, 120, 7, groups=4), 140, 840),
}


@pytest.mark.parametrize(
    "method", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "truncated_normal"]
)
@pytest.mark.parametrize("layer", BIG)
def test_the_variance_is_the_formulas(layer, method):
    module, fan_in, fan_out = BIG[layer]
    weight = array(drawn(copy.deepcopy(module), init_method=method, init_gain=1.5).weight).ravel()
    variance = 1.5**2 * FANS[method.split("_")[0]](fan_in, fan_out)
    spread = np.var(weight**2) ** 0.5 / math.sqrt(weight.size)
    assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.size)
    assert abs((weight**2).mean() - variance) < 5 * spread
    assert 5 * spread < 0.1 * variance
    if method == "truncated_normal":
        assert np.abs(weight).max() < 2.28 * math.sqrt(variance)
        assert np.abs(weight).max() > 2.2 * math.sqrt(variance)
    if method.endswith("uniform"):
        assert np.abs(weight).max() <= math.sqrt(3 * variance) * (1 + 1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_orthogonal_rows_of_each_kind_of_layer(groups):
    conv = drawn(nn.Conv2d(8, 6, 3, groups=groups), init_method="orthogonal", init_gain=0.5).weight
    rows = conv.flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(6))
    transposed = drawn(nn.ConvTranspose2d(8, 6, 3, groups=groups), init_method="orthogonal", init_gain=0.5)
    # The inputs of an output channel: those of its group.
    weight = transposed.weight.unflatten(0, (groups, 8 // groups)).transpose(1, 2).flatten(0, 1).flatten(1)
    torch.testing.assert_close(weight @ weight.T, 0.25 * torch.eye(6))
    tall = drawn(nn.Linear(4, 9), init_method="orthogonal", init_gain=3.0).weight
    torch.testing.assert_close(tall.T @ tall, 9 * torch.eye(4))


def test_half_precision_is_drawn_and_rounded():
    weight = init_weight_(torch.empty(4, 6, dtype=torch.bfloat16), "orthogonal")
    torch.testing.assert_close(weight.float() @ weight.float().T, torch.eye(4), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="method is 'he'; it must be one of xavier_uniform"):
        init_weight_(torch.empty(2, 2), "he")


def test_gains_where_torch_has_them():
    torchs = nn.init.calculate_gain
    for module, name, slope in ((nn.ReLU(), "relu", None), (nn.Tanh(), "tanh", None), (nn.Sigmoid(), "sigmoid", None)):
        assert activation_gain(module) == torchs(name, slope)
    for module in (nn.LeakyReLU(0.3), nn.PReLU(5, 0.3), nn.RReLU(0.2, 0.4)):
        assert activation_gain(module) == pytest.approx(torchs("leaky_relu", 0.3))
    for function, name in (
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (F.leaky_relu, "leaky_relu"),
        (nn.Identity(), "linear"),
    ):
        assert activation_gain(function) == pytest.approx(torchs(name), rel=1e-9)


@pytest.mark.parametrize(
    "activation",
    [nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.ReLU6()],
)
def test_the_other_gains_keep_the_second_moment(activation):
    """By Gauss-Legendre quadrature of pieces, which shares nothing with the trapezoids."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    moment = 0.0
    for low, high in pairwise([-12, -6, -3, 0, 3, 6, 12]):
        z = (high - low) / 2 * nodes + (high + low) / 2
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        moment += (high - low) / 2 * (weights * activation(torch.tensor(z)).numpy() ** 2 * density).sum()
    assert activation_gain(activation) == pytest.approx(moment**-0.5, rel=1e-6)
    if isinstance(activation, nn.SELU):
        assert activation_gain(activation) == pytest.approx(1, rel=1e-5)


class Block(nn.Module):
    """Uses its activations in another order than it registers its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.second, self.first = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


class Mixed(nn.Module):
    """A function as activation, another behind an addition and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.middle, self.head = nn.Linear(4, 4), Block(), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.5)
        return self.head(self.middle(F.gelu(self.block(x)[:, None].mean(1)))).tanh()


def test_what_follows_is_read_from_the_forward():
    """The gain is the length of an orthogonal layer's rows."""
    network = drawn(Mixed(), init_method="orthogonal")
    expected = {
        "stem": math.sqrt(2 / 1.25),
        "block.first": math.sqrt(2),
        "block.second": activation_gain(nn.GELU()),
        "middle": 1.0,
        "head": 1.0,
    }
    for name, gain in expected.items():
        lengths = network.get_submodule(name).weight.norm(dim=1).tolist()
        assert lengths == pytest.approx([gain] * len(lengths), rel=1e-5), name


class Left(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.attention = nn.Embedding(5, 4), nn.GRU(4, 4), nn.MultiheadAttention(4, 2)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.lazy = nn.LazyLinear(3)
        self.norm = nn.LayerNorm(4)
        self.own = nn.Linear(4, 4)


def test_what_is_left_alone():
    torch.manual_seed(1)
    network = Left()
    nn.init.constant_(network.norm.weight, 3), nn.init.constant_(network.norm.bias, 3)
    before = copy.deepcopy({k: v for k, v in network.state_dict().items() if not k.startswith("lazy")})
    Net(network, init_method="kaiming_normal")
    changed = {k for k, v in before.items() if not torch.equal(v, network.state_dict()[k])}
    assert changed == {"norm.weight", "norm.bias", "own.weight", "own.bias", "parametrized.bias"} - {
        "parametrized.bias"
    }
    assert (network.norm.weight.tolist(), network.norm.bias.tolist()) == ([1] * 4, [0] * 4)


def test_a_seed_makes_the_same_weights_and_loaded_ones_win(tmp_path):
    a, b = drawn(layers()), drawn(layers())
    assert_same(a.state_dict(), b.state_dict())
    assert not torch.equal(a[0].weight, drawn(layers(), seed=6)[0].weight)
    net = Net(layers(), init_method="lsuv")
    loaded = {k: v + 0.1 for k, v in net.state_dict().items()}
    net.load_state_dict(loaded)
    fit(net, batches(1, shape=(2, 5, 5)), max_steps=1)
    fresh = Net(layers(), init_method="lsuv", lr=0.0)
    fresh.load_state_dict(loaded)
    fit(fresh, batches(1, shape=(2, 5, 5)))
    assert all(torch.equal(v, loaded[k]) for k, v in fresh.state_dict().items() if k.endswith(("weight", "bias")))


def test_the_layers_stage_comes_first():
    class Both(InitMixin, NormMixin, Tiny):
        pass

    norm = nn.BatchNorm1d(8)
    net = Both(nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3)), init_method="orthogonal")
    assert type(net.network[1]) is nn.GroupNorm
    assert net.network[0].weight.norm(dim=0).tolist() == pytest.approx([math.sqrt(2)] * 4, rel=1e-5)


# Zero residual branches.


@pytest.mark.parametrize("name", ["resnet18", "wrn_16_2"])
def test_closed_branches_leave_the_shortcut(name):
    net = ImageClassifier(network=name, init_method=None, init_zero_residual=True)
    blocks = [m for m in net.modules() if type(m).__name__ in ("BasicBlock", "PreActivationBlock")]
    assert len(blocks) == {"resnet18": 8, "wrn_16_2": 6}[name]
    for block in blocks:
        inside = (block.bn1 if name == "wrn_16_2" else block.conv1).weight.shape[0 if name == "wrn_16_2" else 1]
        x = torch.randn(2, inside, 4, 4).relu()
        if name == "resnet18":
            expected = F.relu(block.shortcut(x))
        else:
            expected = x if block.shortcut is None else block.shortcut(F.relu(block.bn1(x)))
        assert torch.equal(block(x.clone()), expected)
        end = block.bn2 if name == "resnet18" else block.conv2
        assert not end.weight.any()
        assert block.conv1.weight.any()


class Ends(nn.Module):
    """A branch that ends with dropout behind a Sequential, one without weights, and a sum of equal sides."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Identity())
        self.drop = nn.Dropout(0.5)
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: bool = False) -> Tensor:
        if scale:
            x = 2 * x
        x = x + self.drop(self.branch(x))
        x = x + x.tanh()
        return self.head(self.left(x) + self.right(x) + 1)


def test_which_branches_are_closed():
    net = Net(Ends(), init_method=None, init_zero_residual=True)
    zero = {name for name, p in net.network.named_parameters() if not p.any()}
    assert zero == {"branch.2.weight", "branch.2.bias"}


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers_are_closed(norm_first):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    net = Net(
        nn.ModuleList([nn.TransformerEncoderLayer(4, 2, 8, **options), nn.TransformerDecoderLayer(4, 2, 8, **options)]),
        init_method=None,
        init_zero_residual=True,
    )
    encoder, decoder = net.network
    x, memory = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    expected = x if norm_first else F.layer_norm(x, (4,))
    torch.testing.assert_close(encoder(x), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoder(x, memory), expected, atol=1e-4, rtol=0)


def test_closed_branches_open_in_training():
    net = Net(nn.Sequential(Block(), nn.Linear(4, 3)), init_method="orthogonal", init_zero_residual=True)
    x = torch.randn(3, 4)
    assert torch.equal(net.network[0](x), x)
    fit(net, batches(3))
    assert net.network[0].second.weight.abs().min() > 0


# LSUV.


def deep_mlp(act: type[nn.Module]) -> nn.Sequential:
    hidden = [m for _ in range(15) for m in (act(), nn.Linear(40, 40))]
    return nn.Sequential(nn.Linear(4, 40), *hidden, act(), nn.Linear(40, 3))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.GELU()),
        *(nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(300, 3)),
    )


def variances(network: nn.Module, x: Tensor) -> list[float]:
    found = []
    for layer in network:
        x = layer(x)
        if hasattr(layer, "weight") and not isinstance(layer, nn.BatchNorm2d):
            found.append(float(array(x).var()))
    return found


class Start(pl.Callback):
    """Keeps the weights with which the first step begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0 and batch_idx == 0:
            self.network = copy.deepcopy(pl_module.network)
            self.draw = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002


def started(net, data, **kwargs) -> nn.Module:
    start = Start()
    fit(net, data, callbacks=[start], **kwargs)
    return start.network


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.ReLU])
def test_lsuv_of_a_deep_mlp(act):
    data = batches(2, size=64)
    net = Net(deep_mlp(act), init_method="lsuv")
    assert max(abs(v - 1) for v in variances(net.network, data[0][0])) > 0.4
    network = started(net, data)
    assert variances(network, data[0][0]) == pytest.approx([1] * 17, abs=1e-3)
    for layer in network:  # still orthogonal
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
            gram = layer.weight @ layer.weight.T
            torch.testing.assert_close(gram, gram[0, 0] * torch.eye(40), atol=1e-3 * gram[0, 0].item(), rtol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_lsuv_of_a_convolutional_network(precision):
    data = batches(2, size=16, shape=(2, 5, 5), dtype=torch.float64 if precision == "64-true" else torch.float32)
    network = started(Net(cnn(), init_method="lsuv"), data, precision=precision)
    assert network[5].num_batches_tracked == 0
    assert not network[5].running_mean.any()
    tolerance = 0.03 if precision == "bf16-mixed" else 1e-4
    assert variances(network.to(data[0][0].dtype), data[0][0]) == pytest.approx([1] * 4, abs=tolerance)


class Draws(Tiny):
    """Draws from every generator in its forward."""

    def forward(self, x):
        return super().forward(x + 0 * (torch.rand(1) + random.random() + np.random.rand()))  # noqa: NPY002


def test_lsuv_leaves_the_random_numbers_and_the_data_order_alone():
    def run(method):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
        net = compose(Draws, InitMixin, name="Net")(deep_mlp(nn.Tanh), init_method=method)
        x, ids = batches(1, size=32)[0]
        own = torch.Generator().manual_seed(4)
        data = DataLoader(TensorDataset(x, ids), 8, shuffle=True, generator=own)
        start = Start()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[start], enable_model_summary=False, **quiet)
        trainer.fit(net, data)
        return start.draw, torch.cat([b[0] for b in net.batches])

    lsuv, orthogonal = run("lsuv"), run("orthogonal")
    assert lsuv[0] == orthogonal[0]
    assert torch.equal(lsuv[1], orthogonal[1])
    assert len(lsuv[1]) == 64


def test_lsuv_with_persistent_workers_loses_no_batch():
    x, ids = batches(1, size=32)[0]
    data = DataLoader(TensorDataset(x, ids), 8, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    net = Net(deep_mlp(nn.Tanh), init_method="lsuv")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(net, data)
    assert torch.equal(torch.cat([b[0] for b in net.batches]), x)


def test_lsuv_of_dicts_and_streams():
    x, ids = batches(1, size=64)[0]
    data = [({"features": x, "mask": (x > -1).float()}, ids)] * 2
    network = started(Net(deep_mlp(nn.Tanh), init_method="lsuv"), data)
    assert variances(network, x * (x > -1)) == pytest.approx([1] * 17, abs=1e-3)
    data = streams(2, size=32)
    net = compose(Tiny, InitMixin, FixMatchMixin, name="Net")(deep_mlp(nn.Tanh), init_method="lsuv")
    assert variances(started(net, data), data[0]["labeled"][0]) == pytest.approx([1] * 17, abs=1e-3)


def test_lsuv_comes_before_the_teachers_copy_and_the_start_of_l2sp():
    class Stack(SAMMixin, EMATeacherMixin, InitMixin, L2SPMixin, Tiny):
        pass

    data = batches(1, size=32)
    net = Stack(deep_mlp(nn.Tanh), init_method="lsuv", ema_teacher_decay=1.0, ema_teacher_warmup=False)
    network = started(net, data)
    assert variances(network, data[0][0]) == pytest.approx([1] * 17, abs=1e-3)
    assert_same(net.ema_teacher.network.state_dict(), network.state_dict())
    for name, start in net._l2sp_start.items():
        assert torch.equal(start, network.get_parameter(name.removeprefix("network.")))


def test_lsuv_runs_once(tmp_path):
    data = batches(4, size=32)
    net = Net(deep_mlp(nn.Tanh), init_method="lsuv", lr=0.3)
    trainer = fit(net, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trained = copy.deepcopy(net.network.state_dict())
    assert_same(started(net, data).state_dict(), trained)  # a second fit
    resumed = Net(deep_mlp(nn.Tanh), init_method="lsuv", lr=0.0)
    fit(resumed, data, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    loaded = Net.load_from_checkpoint(tmp_path / "a.ckpt", network=deep_mlp(nn.Tanh), init_method="lsuv")
    assert_same(started(loaded, data).state_dict(), trained)


@pytest.mark.parametrize("steps", [0, 2])
def test_lsuv_leaves_a_checkpoints_weights_alone_though_they_look_fresh(tmp_path, steps):
    data = batches(4, size=32)
    net = Net(deep_mlp(nn.Tanh), init_method="orthogonal", init_gain=1.0, lr=0.0)
    fit(net, data, max_steps=steps).save_checkpoint(tmp_path / "a.ckpt")
    resumed = Net(deep_mlp(nn.Tanh), init_method="lsuv", lr=0.0)
    fit(resumed, data, ckpt_path=tmp_path / "a.ckpt")
    assert_same(resumed.network.state_dict(), net.network.state_dict())


def test_a_backbone_that_was_loaded_stays_while_the_rest_is_scaled():
    net = Net(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), init_method="lsuv")
    with torch.no_grad():
        net.network[0].weight.copy_(torch.arange(32).reshape(8, 4) / 10)
    data = batches(1, size=32)
    network = started(net, data)
    assert torch.equal(network[0].weight, torch.arange(32).reshape(8, 4) / 10)
    assert variances(network, data[0][0])[1] == pytest.approx(1, abs=1e-4)


def test_lsuv_beside_closed_branches():
    net = Net(nn.Sequential(Block(), nn.Linear(4, 3)), init_method="lsuv", init_zero_residual=True)
    data = batches(1, size=32)
    network = started(net, data)
    assert not network[0].second.weight.any()
    assert array(network(data[0][0])).var() == pytest.approx(1, abs=1e-3)
    assert array(network[0].first(data[0][0])).var() == pytest.approx(1, abs=1e-3)


def test_lsuv_of_a_layer_that_is_used_twice():
    shared = nn.Linear(4, 4)
    net = Net(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)), init_method="lsuv")
    data = batches(1, size=32)
    network = started(net, data)
    assert array(network[0](data[0][0])).var() == pytest.approx(1, abs=1e-3)
    assert array(network(data[0][0])).var() == pytest.approx(1, abs=1e-3)


class SaveStart(pl.Callback):
    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def test_two_ranks_scale_by_the_variance_of_both_batches(tmp_path):
    x, ids = batches(1, size=32, dtype=torch.float64)[0]
    x[1::2] *= 3  # the second rank's samples
    dataset = TensorDataset(x, ids)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for ranks in (1, 2):
        torch.manual_seed(0)
        net = Net(deep_mlp(nn.Tanh), init_method="lsuv")
        data = DataLoader(dataset, 32 // ranks, sampler=InTurns(32), generator=torch.Generator())
        strategy = {"strategy": "ddp_fork", "devices": 2} if ranks == 2 else {}
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, precision="64-true", use_distributed_sampler=False,
            callbacks=[SaveStart(tmp_path)], enable_model_summary=False, **strategy, **quiet,
        )  # fmt: skip
        trainer.fit(net, data)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert_same(first, second)
    for name, value in one.items():
        torch.testing.assert_close(value, first[name], rtol=1e-10, atol=1e-10)


def test_lsuv_under_fsdp_is_refused():
    net = Net(deep_mlp(nn.Tanh), init_method="lsuv")
    net._trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    net._trainer.strategy.__class__ = type("FSDPStrategy", (type(net._trainer.strategy),), {})
    assert FSDPStrategy.__name__ == type(net._trainer.strategy).__name__
    with pytest.raises(
        MisconfigurationException, match="init_method='lsuv' cannot scale the weights under FSDPStrategy"
    ):
        net.on_fit_start()


def test_off_draws_nothing():
    network = layers()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    Net(network, init_method=None, init_gain=0.5)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert_same(network.state_dict(), before)


@pytest.mark.parametrize(
    ("network", "arguments", "reason"),
    [
        (
            nn.Linear(4, 3).requires_grad_(False),
            {},
            "Tiny has no trainable linear or convolutional layer after its __init__",
        ),
        (deep_mlp(nn.Tanh), {"init_zero_residual": True}, "init_zero_residual is on, but Tiny has no residual block"),
    ],
)
def test_without_effect(network, arguments, reason):
    with pytest.raises(NoEffectError, match="InitMixin is on but can change nothing") as caught:
        fit(Net(network, **arguments), batches(1))
    assert reason in str(caught.value)


def test_wrong_arguments():
    for arguments, message in (
        ({"init_method": "he"}, "init_method is 'he'. It must be one of 'xavier_uniform', "),
        ({"init_method": "ortogonal"}, "init_method is 'ortogonal'; did you mean 'orthogonal'?"),
        ({"init_gain": 0}, "init_gain is 0; it must be a number in (0, inf)."),
        ({"init_method": "lsuv", "init_gain": 1.0}, "init_gain is for the other methods: 'lsuv' finds each layer's"),
    ):
        with pytest.raises(InvalidValueError) as caught:
            Net(nn.Linear(4, NUM_CLASSES), **arguments)
        assert str(caught.value).startswith(message)
