"""ActivationHealth: its numbers against float64 numpy, its hooks, its state and its pictures."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import ActivationHealth, ImageClassifier
from lightning_tuning.callbacks import activation_health
from lightning_tuning.callbacks._activation_look import ActivationLook, leaves
from lightning_tuning.callbacks._health_picture import draw_health
from lightning_tuning.errors import InvalidValueError
from tests.contract.nets import assert_equal_state, loaders, make
from tests.contract.nets import trainer as quiet_trainer
from tests.contract.settings import ROWS
from tests.contract.test_contract import Overflow


class Recorder(Logger):
    """Keeps what it is given, by step."""

    name = version = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        own = {k.removeprefix("health/"): v for k, v in metrics.items() if k.startswith("health/")}
        if own:
            self.rows[step] = own


class Net(LightningModule):
    """Layers in a row; ``layers`` are called in turn."""

    def __init__(self, *layers: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).flatten(1).mean(1).sub(batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def linear_net(*kinds: nn.Module, seed: int = 0, **kwargs: Any) -> Net:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6)]
    for kind in kinds:
        layers += [kind, nn.Linear(6, 6)]
    return Net(*layers, **kwargs)


def data(
    size: int = 8, shape: tuple[int, ...] = (4,), batches: int = 6, dtype: torch.dtype = torch.float32
) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size * batches, *shape, generator=generator, dtype=dtype)
    return DataLoader(TensorDataset(x, x.flatten(1).mean(1)), size)


def fit(module: LightningModule, *callbacks: Callback, batches: Any = None, **settings: Any) -> Recorder:
    recorder = Recorder()
    trainer = Trainer(
        callbacks=list(callbacks),
        logger=recorder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "max_epochs": 1, "default_root_dir": "unused", **settings},
    )
    trainer.fit(module, data() if batches is None else batches)
    return recorder


class Kept(ActivationHealth):
    """Writes nothing; keeps the sentences and counts the pictures."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: list[str] = []
        self.pictures: list[int] = []


REAL = {name: getattr(activation_health, name) for name in ("diagnose", "save_picture")}


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def owner(trainer: Trainer) -> Kept | None:
        return next((c for c in trainer.callbacks if isinstance(c, Kept)), None)

    def tell(trainer: Trainer, sentence: str) -> None:
        kept = owner(trainer)
        if kept is None:
            raise AssertionError(f"unexpected diagnosis: {sentence}")
        kept.told.append(sentence)

    def save(trainer: Trainer, figure: Any, name: str) -> None:
        assert name == "activation_health"
        if (kept := owner(trainer)) is not None:
            kept.pictures.append(trainer.global_step)

    monkeypatch.setattr(activation_health, "diagnose", tell)
    monkeypatch.setattr(activation_health, "save_picture", save)


# Numbers.


class Witness(Callback):
    """Passes each batch through the linear layers and the activations in float64 numpy."""

    KINDS = {"ReLU": lambda z: np.maximum(z, 0), "Tanh": np.tanh, "Sigmoid": lambda z: 1 / (1 + np.exp(-z))}

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.idle: dict[str, list[np.ndarray]] = {}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        z, row = batch[0].double().numpy(), {}
        for name, layer in module.net.named_children():
            if isinstance(layer, nn.Linear):
                z = z @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
            else:
                row |= {f"pre_mean/net.{name}": z.mean(), f"pre_std/net.{name}": z.std()}
                if isinstance(layer, nn.ReLU):
                    self.idle.setdefault(f"net.{name}", []).append((z <= 0).all(0))
                z = self.KINDS[type(layer).__name__](z)
                if isinstance(layer, nn.Tanh):
                    row[f"saturated/net.{name}"] = (np.abs(z) > 0.97).mean()
                if isinstance(layer, nn.Sigmoid):
                    row[f"saturated/net.{name}"] = ((z > 0.97) | (z < 0.03)).mean()
            row |= {f"mean/net.{name}": z.mean(), f"std/net.{name}": z.std()}
            row[f"variation/net.{name}"] = np.sqrt(((z - z.mean(0)) ** 2).mean() / (z**2).mean())
        self.rows.append(row)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        row = self.rows[-1]
        grads = {name: p.grad.double().numpy() for name, p in module.named_parameters()}
        profile = {name.removesuffix(".weight"): np.sqrt((g**2).mean()) for name, g in grads.items() if g.ndim == 2}
        row |= {f"gradient/{name}": value for name, value in profile.items()}
        row["gradient_ratio"] = next(iter(profile.values())) / [*profile.values()][-1]
        row["gradient_norm"] = np.sqrt(sum((g**2).sum() for g in grads.values()))


def scaled(net: Net, factor: float) -> Net:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_all_numbers_equal_float64_numpy(precision):
    net = scaled(linear_net(nn.Tanh(), nn.Sigmoid(), nn.ReLU(), lr=0.01), 3.0)
    witness, batches = Witness(), data(dtype=torch.float64 if precision == "64-true" else torch.float32)
    rows = fit(net, witness, Kept(2, window=2), precision=precision, max_epochs=2, batches=batches).rows
    assert list(rows) == [0, 2, 4, 6, 8, 10]
    for number, (step, row) in enumerate(rows.items()):
        expected = witness.rows[step]
        looks = witness.idle["net.5"][0 : step + 1 : 2]
        dead = (looks[-1] & looks[-2]).mean() if number else 0.0
        assert row == pytest.approx({**expected, "dead/net.5": dead}, rel=1e-5, abs=1e-7)
    assert any(row["dead/net.5"] > 0 for row in rows.values())
    assert 0 < rows[0]["saturated/net.1"] < 1


class Biases(Callback):
    """Sets the biases of the first layer before a step."""

    def __init__(self, biases: dict[int, list[float]]) -> None:
        self.biases = biases

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.biases:
            with torch.no_grad():
                module.net[0].bias.copy_(torch.tensor(self.biases[batch_idx]))


def test_a_unit_is_dead_if_it_was_zero_in_every_look_of_the_window():
    off, on = -99.0, 99.0
    biases = {
        0: [off, off, off, on, on, on],
        1: [on, on, on, on, on, on],  # not looked at
        2: [off, off, on, on, on, off],
        4: [off, off, off, on, off, off],
    }
    rows = fit(linear_net(nn.ReLU(), lr=0.0), Biases(biases), Kept(2, window=3)).rows
    assert [row["dead/net.1"] for row in rows.values()] == pytest.approx([0, 0, 2 / 6])
    rows = fit(linear_net(nn.ReLU(), lr=0.0), Biases(biases), Kept(2, window=1)).rows
    assert [row["dead/net.1"] for row in rows.values()] == pytest.approx([3 / 6, 3 / 6, 5 / 6])


def test_a_layer_that_writes_over_its_inputs_is_read_before():
    plain, in_place = (fit(linear_net(nn.ReLU(inplace=flag)), Kept(1)).rows for flag in (False, True))
    assert in_place == plain
    assert plain[0]["pre_mean/net.1"] < plain[0]["mean/net.1"]


class Permuted(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv2d(3, 5, 1), nn.ReLU()), (3, 2, 2)),
        ((nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), nn.ReLU()), (3, 4)),
        ((nn.Linear(3, 5), nn.ReLU()), (4, 3)),
        ((nn.Linear(3, 5), nn.LayerNorm(5), nn.Dropout(0.0), nn.ReLU()), (2, 2, 3)),
        ((nn.Conv1d(3, 5, 1), Permuted(0, 2, 1), nn.LayerNorm(5), nn.ReLU()), (3, 4)),
    ],
)
def test_units_are_channels_behind_convolutions_and_features_behind_linear_layers(layers, shape):
    torch.manual_seed(0)
    layers = copy.deepcopy(layers)
    source = layers[0] if isinstance(layers[1], (nn.ReLU, Permuted)) else layers[1]
    if isinstance(layers[-2], nn.LayerNorm) or isinstance(layers[1], nn.LayerNorm):
        source = next(layer for layer in layers if isinstance(layer, nn.LayerNorm))
    with torch.no_grad():
        source.bias.copy_(torch.tensor([-99.0, 99, 99, 99, 99]))
    rows = fit(Net(*layers, lr=0.0), Kept(1, window=1), batches=data(16, shape)).rows
    name = f"dead/net.{len(layers) - 1}"
    assert [row[name] for row in rows.values()] == pytest.approx([1 / 5] * 6)


class Square(nn.Module):
    """Somebody's own activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0).square()


def test_an_activation_of_ones_own_is_off_where_it_is_exactly_zero():
    net = linear_net(Square())
    rows = fit(net, Biases({0: [-99.0, -99.0, 0, 0, 0, 0]}), Kept(1, window=1)).rows
    assert rows[0]["dead/net.1"] == pytest.approx(2 / 6)
    before_weights = fit(Net(Square(), nn.Linear(4, 6)), Kept(1, window=1)).rows
    assert "dead/net.0" not in before_weights[0]  # its zeros are the data's
    assert "std/net.0" in before_weights[0]


def test_layers_that_pass_on_what_they_get_are_left_out():
    torch.manual_seed(0)
    inside = nn.Sequential(
        nn.Identity(), nn.Conv2d(1, 2, 1), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    rows = fit(Net(inside), Kept(1), batches=data(8, (1, 4, 4))).rows
    assert {name.split("/")[1] for name in rows[0] if "/" in name} == {"net.0.1", "net.0.5"}


# Which pass is seen.


class Shared(Net):
    """One activation at two places of a pass, and a second pass through all in each step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        self.only_later = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, act, second = self.net
        return act(second(act(first(x))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self(99 * batch[0])
        return super().training_step(batch, batch_idx) + self.only_later(self(99 * batch[0])).mean()


def test_the_first_pass_with_a_graph_counts_and_each_place_of_a_shared_layer():
    net = Shared()
    x = data().dataset.tensors[0][:8]
    first, act, second = net.net
    with torch.no_grad():
        one = act(first(x))
        two = act(second(one))
        later = net.only_later(net(99 * x))
    rows = fit(net, Kept(1)).rows
    assert rows[0]["std/net.1"] == pytest.approx(one.std(correction=0).item(), rel=1e-5)
    assert rows[0]["std/net.1#2"] == pytest.approx(two.std(correction=0).item(), rel=1e-5)
    assert rows[0]["std/only_later"] == pytest.approx(later.std(correction=0).item(), rel=1e-5)
    assert "std/net.1#3" not in rows[0]


class Looped(Net):
    """Calls the same layers ten times behind an embedding of its own."""

    def forward(self, x: Tensor) -> Tensor:
        first, cell = self.net[0], self.net[1]
        x = first(x)
        for _ in range(10):
            x = torch.tanh(cell(x))
        return x


def test_of_a_loop_the_first_calls_are_seen():
    torch.manual_seed(0)
    rows = fit(Looped(nn.Linear(4, 6), nn.Linear(6, 6)), Kept(1)).rows
    seen = [name for name in rows[0] if name.startswith("std/")]
    assert seen == ["std/net.0", "std/net.1", "std/net.1#2", "std/net.1#3", "std/net.1#4"]


class Checkpointed(Net):
    reentrant: bool | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.net[0](batch[0])
        rest = self.net[1:]
        x = rest(x) if self.reentrant is None else checkpoint(rest, x, use_reentrant=self.reentrant)
        return x.flatten(1).mean(1).sub(batch[1]).square().mean()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_seen_once_and_trains_as_without(reentrant):
    nets = [Checkpointed(*linear_net(nn.Tanh(), nn.ReLU()).net) for _ in range(2)]
    nets[1].reentrant = reentrant
    plain, checkpointed = (fit(net, Kept(2)).rows for net in nets)
    assert checkpointed == plain
    assert list(plain[0]) == list(checkpointed[0])
    assert_equal_state(nets[0].state_dict(), nets[1].state_dict())


def test_frozen_parts_in_evaluation_mode_are_teachers_and_those_in_training_mode_are_not():
    module = Net(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    module.net[1].requires_grad_(False).eval()
    module.net[2].requires_grad_(False)
    assert [name for name, _ in leaves(module)] == ["net.0", "net.2.0", "net.2.1"]


@pytest.mark.parametrize(
    "row",
    ["sam", "ema_teacher", "fixmatch", "vat", "adversarial", "trades", "rdrop", "manifold_mixup", "spectral_norm",
     "weight_noise", "self_distillation", "jacobian"],
)  # fmt: skip
def test_techniques_train_bitwise_as_without_and_the_students_layers_are_seen(row, tmp_path):
    setting, nets, recorder = ROWS[row][1], [], Recorder()
    for callbacks in ([], [Kept(3)]):
        nets.append(make(row))
        torch.manual_seed(1)
        quiet_trainer(tmp_path, callbacks=callbacks, logger=recorder, max_epochs=1).fit(nets[-1], loaders(setting, 8))
    assert_equal_state(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    seen = {name.split("/")[1] for name in recorder.rows[0] if name.startswith("std/")}
    assert {"net.0", "net.2", "net.3.act", "net.6"} <= seen
    assert not [name for name in seen if "teacher" in name or "#" in name]


def test_sam_is_seen_at_the_weights_that_it_steps_from(tmp_path):
    rows = []
    for row in ("sam", "l2"):
        recorder = Recorder()
        torch.manual_seed(1)
        net = make(row, plain=True, off=row == "l2")
        quiet_trainer(tmp_path, callbacks=[Kept(1)], logger=recorder, max_epochs=1).fit(net, loaders(ROWS[row][1], 8))
        rows.append(recorder.rows[0])
    assert {k: v for k, v in rows[0].items() if k.startswith("std/")} == {
        k: v for k, v in rows[1].items() if k.startswith("std/")
    }
    assert rows[0]["gradient/net.0"] != rows[1]["gradient/net.0"]  # the one that the optimizer uses


def test_attacks_and_virtual_adversarial_passes_do_not_count(tmp_path):
    module = make("vat", plain=True)
    look = ActivationLook(module)
    x = torch.randn(4, 2, 5, 5)
    module.__dict__["_in_inner_pass"] = True
    module(x)
    assert look.places() == []
    module.__dict__["_in_inner_pass"] = False
    module.net[2].eval()
    module(x)
    assert "net.0" in {place.name for place in look.places()}
    assert "net.2" not in {place.name for place in look.places()}
    look.close()


# Compiled models.


@pytest.mark.parametrize("how", ["in_place", "wrapped", "function", "module"])
def test_a_compiled_model_trains_as_without_and_is_not_seen_inside(how):
    def compiled() -> LightningModule:
        net: Any = linear_net(nn.ReLU(), nn.Tanh())
        net.head = nn.Linear(6, 6)
        inner = net.net
        net.forward = lambda x: net.head(net.net(x))
        if how == "in_place":
            inner.compile(backend="eager")
        elif how == "wrapped":
            net.net = torch.compile(inner, backend="eager")
        elif how == "function":
            inner.forward = torch.compile(inner.forward, backend="eager")
        return torch.compile(net, backend="eager") if how == "module" else net

    torch._dynamo.reset()
    bare = compiled()
    fit(bare)
    torch._dynamo.reset()
    watched, health = compiled(), Kept(2)
    rows = fit(watched, health).rows
    assert_equal_state(dict(bare.state_dict()), dict(watched.state_dict()))
    if how == "module":
        assert not rows
        (sentence,) = health.told
        assert sentence.startswith("ActivationHealth sees no layer of Net; hooks reach neither what torch.compile")
        assert not health.pictures
    else:
        assert [name for name in rows[2] if name.startswith("std/")] == ["std/head"]
    torch._dynamo.reset()


# Steps, hooks, state.


class HookCount(Callback):
    """How many hooks stand during each step's forward pass, at its backward pass and after it."""

    def __init__(self) -> None:
        self.during: list[int] = []
        self.later: list[int] = []

    @staticmethod
    def count(module: LightningModule) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.during.append(self.count(module))

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        self.later.append(self.count(module))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.later.append(self.count(module))


def test_hooks_stand_in_the_forward_pass_that_is_looked_at_only():
    count = HookCount()
    fit(linear_net(nn.ReLU()), Kept(3), count)
    assert count.during == [4, 0, 0, 4, 0, 0]
    assert set(count.later) == {0}


def test_with_accumulation_the_last_batch_of_a_window_is_looked_at_and_steps_are_counted():
    count, witness = HookCount(), Witness()
    net = linear_net(nn.Tanh())
    rows = fit(net, witness, Kept(2), count, accumulate_grad_batches=2, max_epochs=2).rows
    assert [i for i, hooks in enumerate(count.during) if hooks] == [1, 5, 9]
    assert list(rows) == [0, 2, 4]
    assert rows[2]["mean/net.2"] == pytest.approx(witness.rows[5]["mean/net.2"], rel=1e-5)
    assert rows[2]["gradient/net.0"] == pytest.approx(witness.rows[5]["gradient/net.0"], rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_look_whose_step_the_scaler_skipped_is_repeated_and_advances_nothing(fused, tmp_path):
    health, count = Kept(2, window=1), HookCount()
    made = quiet_trainer(tmp_path, precision="16-mixed", max_epochs=1, callbacks=[health, count, Overflow(2)])
    made.precision_plugin.scaler._init_scale = 1024.0
    net = make("l2", plain=True)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.05, fused=fused)
    made.fit(net, loaders(ROWS["l2"][1], 4))
    assert [i for i, hooks in enumerate(count.during) if hooks] == [0, 2, 3, 5, 7]
    assert health.state_dict()["look_steps"] == [0, 2, 4, 6]
    assert health.state_dict()["steps"] == 7


class Huge(nn.Linear):
    """Overflows fp16, but not float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e5


def test_an_overflow_of_fp16_is_told_though_the_scaler_skips_each_step(tmp_path):
    health = Kept(2)
    made = quiet_trainer(tmp_path, precision="16-mixed", max_epochs=1, callbacks=[health])
    torch.manual_seed(0)
    made.fit(Net(nn.Linear(4, 6), nn.ReLU(), Huge(6, 6)), data())
    (sentence,) = health.told
    assert sentence.startswith(
        "The outputs of net.2 (Huge) are not finite at step 0, though its weights and the outputs"
    )
    assert "overflows fp16" in sentence
    assert health.state_dict()["steps"] == 0


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_under_fp16(fused, tmp_path):
    values = []
    for precision in ("32-true", "16-mixed"):
        net, recorder = make("l2", plain=True), Recorder()
        use = fused and precision == "16-mixed"
        net.configure_optimizers = lambda n=net, f=use: torch.optim.SGD(n.parameters(), lr=0.0, fused=f)
        made = quiet_trainer(tmp_path, precision=precision, max_epochs=1, callbacks=[Kept(1)], logger=recorder)
        if precision == "16-mixed":
            made.precision_plugin.scaler._init_scale = 1024.0
        made.fit(net, loaders(ROWS["l2"][1], 8))
        values.append(recorder.rows[2]["gradient/net.0"])
    assert values[1] == pytest.approx(values[0], rel=0.02)


class Skipping(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else loss


def test_a_skipped_batch_leaves_no_hooks():
    count = HookCount()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Skipping(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), Kept(1), count)
    assert set(count.later) == {0}


class Failing(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        raise RuntimeError("broken")


def test_an_error_in_the_step_leaves_no_hooks():
    net = Failing(nn.Linear(4, 6), nn.ReLU())
    with pytest.raises(RuntimeError, match="broken"):
        fit(net, Kept(1))
    assert HookCount.count(net) == 0


def test_a_run_that_goes_on_says_and_keeps_what_the_straight_one_does(tmp_path):
    def run(health: Kept, epochs: int, ckpt_path: Any = None) -> Trainer:
        made = quiet_trainer(tmp_path, max_epochs=epochs, callbacks=[health])
        net = linear_net(nn.ReLU(), nn.Sigmoid(), lr=0.0)
        net.net[0].bias.data[:2] = -99.0
        made.fit(net, data(), ckpt_path=ckpt_path)
        return made

    limits = {"max_dead": 0.0, "max_saturated": 0.0, "min_variation": 1.0, "max_ratio": 1.01, "max_growth": 1.01}
    straight, first, second = (Kept(4, window=3, **limits) for _ in range(3))
    run(straight, 5)
    run(first, 1).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    run(second, 5, tmp_path / "a.ckpt")
    assert straight.told
    assert first.told + second.told == straight.told
    assert str(second.state_dict()) == str(straight.state_dict())
    assert len(straight.state_dict()["look_steps"]) == 8


def test_a_new_run_begins_anew_and_a_later_fit_of_the_same_trainer_goes_on(tmp_path):
    health = Kept(1)
    made = quiet_trainer(tmp_path, max_epochs=1, callbacks=[health])
    net = linear_net(nn.ReLU())
    made.fit(net, data())
    made.fit_loop.max_epochs = 2
    made.fit(net, data())
    assert health.state_dict()["look_steps"] == list(range(12))
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[health]).fit(net, data())
    assert health.state_dict()["look_steps"] == list(range(6))


def test_of_very_many_looks_every_second_is_kept_then_every_fourth(monkeypatch):
    monkeypatch.setattr(activation_health, "_MOST_LOOKS", 4)
    health = Kept(1)
    fit(linear_net(nn.ReLU()), health, max_epochs=2)
    state = health.state_dict()
    assert state["look_steps"] == [0, 4, 8]
    assert {len(values) for values in state["series"].values()} == {len(state["look_steps"])}
    assert state["looks"] == 12


def test_layers_that_are_called_only_now_and_then_have_gaps():
    class Sometimes(Net):
        def forward(self, x: Tensor) -> Tensor:
            for number, layer in enumerate(self.net):
                if number < 2 or self.global_step % 2:
                    x = layer(x)
            return x

    torch.manual_seed(0)
    health = Kept(1)
    fit(Sometimes(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), health)
    series = health.state_dict()["series"]["std/net.2"]
    assert series.isnan().tolist() == [True, False] * 3


def test_two_optimizers_in_manual_optimization():
    class Manual(Net):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.net[0], self.net[2])]

    witness = Witness()
    rows = fit(Manual(*linear_net(nn.Tanh()).net), witness, Kept(2)).rows
    assert list(rows) == [0, 2, 4]
    expected = witness.rows[2]
    names = ("gradient/net.0", "gradient/net.2", "gradient_norm", "gradient_ratio", "std/net.1")
    assert {name: rows[2][name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-5)


# What is told and drawn.


def test_what_is_not_finite_is_told_with_its_cause():
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                module.net[2].weight.data[0, 0] = math.nan

    health = Kept(1)
    fit(linear_net(nn.ReLU(), nn.ReLU()), Poison(), health)
    (sentence,) = health.told
    assert sentence.startswith(
        "The outputs of net.2 (Linear) are not finite at step 3, for an earlier step made its weights so; lower"
    )


def test_inputs_that_are_not_finite_are_told_from_weights_that_are_not():
    batches = data()
    batches.dataset.tensors[0][17, 2] = math.nan  # in the third batch
    health = Kept(1)
    fit(linear_net(nn.ReLU()), health, batches=batches)
    (sentence,) = health.told
    assert sentence == (
        "The outputs of net.0 (Linear) are not finite at step 2, though its weights are; look for NaN and infinite "
        "values in the inputs."
    )


def test_a_dead_network_is_diagnosed():
    net = linear_net(nn.ReLU())
    with torch.no_grad():
        net.net[0].bias.fill_(-99.0)
    health = Kept(1)
    fit(net, health)
    assert health.told[0].startswith(
        "net.1 (ReLU): 100% of the units have been zero for every sample since step 0; draw other weights"
    )


def test_a_model_without_activation_layers_is_told_so(caplog):
    class Functional(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.net[1](torch.relu(self.net[0](x)))

    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        rows = fit(Functional(nn.Linear(4, 6), nn.Linear(6, 6)), Kept(1)).rows
    assert "ActivationHealth: Functional has no activation layer. Functions such as F.relu(x)" in caplog.text
    assert "std/net.0" in rows[0]
    caplog.clear()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(linear_net(nn.ReLU()), Kept(1))
    assert "ActivationHealth" not in caplog.text


def test_pictures_are_drawn_after_validations_ever_more_rarely_and_at_the_end():
    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    torch.manual_seed(0)
    health = Kept(1)
    made = Trainer(
        callbacks=[health], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", max_epochs=3, val_check_interval=1,
    )  # fmt: skip
    made.fit(Validated(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), data(), data())
    drawn = [1, 2, 3, 5, 8, 12]  # each the first that is 1.5 of the one before
    assert health.pictures == [*drawn, 18]


def test_two_processes_write_one_diagnosis_and_one_picture(tmp_path, monkeypatch):
    class Dying(Callback):
        """Switches the units off on the first process alone: what is told is of its batch."""

        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            if trainer.is_global_zero:
                module.net[0].bias.data.fill_(-99.0)

    for name, function in REAL.items():
        monkeypatch.setattr(activation_health, name, function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = quiet_trainer(
            tmp_path, max_epochs=1, strategy="ddp_fork", devices=2, callbacks=[ActivationHealth(1), Dying()]
        )
        made.fit(linear_net(nn.ReLU(), lr=0.0), data())
    (line,) = (tmp_path / "diagnosis.txt").read_text().splitlines()
    assert line.startswith(
        "Step 3, epoch 0: net.1 (ReLU): 100% of the units have been zero for every sample since step 0;"
    )
    assert (tmp_path / "activation_health.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_maps_show_each_value_at_its_layer_and_step():
    nan = math.nan
    series = {
        "mean/a": [1.0, 1.0, 1.0],
        "std/a": [1.0, 10.0, 0.0],
        "dead/b": [0.0, 0.25, 0.5],
        "std/b": [nan, 100.0, math.inf],
        "dead/c": [1.0, 0.5, 0.0],
        "gradient_norm": [1.0, 1.0, 1.0],
    }
    figure = draw_health([0, 10, 30], series)
    dead, std = (axes for axes in figure.axes if axes.get_title())
    assert dead.get_title() == "share of dead units"
    assert [label.get_text() for label in dead.get_yticklabels()] == ["b", "c"]
    assert dead.yaxis_inverted()
    assert dead.collections[0].get_array().tolist() == [[0.0, 0.25, 0.5], [1.0, 0.5, 0.0]]
    assert std.collections[0].get_array().tolist() == [[0.0, 1.0, -4.0], [None, 2.0, None]]
    assert std.collections[0].get_coordinates()[0, :, 0].tolist() == [0, 10, 30, 50]
    assert std.get_xlabel() == "optimizer step"
    many = draw_health([0], {f"std/{i}": [1.0] for i in range(100)})
    assert len(many.axes[0].get_yticks()) == 34
    assert not draw_health([], {}).axes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; it must be an integer of at least 1"),
        ({"window": 1.5}, "window is 1.5; it must be an integer of at least 1"),
        ({"max_dead": 1.1}, r"max_dead is 1.1; it must be a number in \[0, 1\]"),
        ({"max_saturated": -0.1}, "max_saturated is -0.1"),
        ({"min_variation": -1}, "min_variation is -1"),
        ({"max_ratio": 1}, r"max_ratio is 1; it must be a number in \(1, inf\)"),
        ({"max_growth": math.nan}, "max_growth is nan"),
    ],
)
def test_bad_arguments_get_one_clear_message(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        ActivationHealth(**arguments)


def test_it_leaves_the_random_numbers_alone():
    states = []
    for callbacks in ([], [Kept(1)]):
        net = linear_net(nn.ReLU(), nn.Dropout(0.5))
        torch.manual_seed(3)
        fit(net, *callbacks)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_ready_hosts_are_seen_from_the_first_convolution_on():
    x = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = ImageClassifier(network="cnn", optimizer="sgd", lr=0.01)
    batches = DataLoader(TensorDataset(x, torch.arange(32) % 10), 8)
    rows = fit(model, Kept(2), batches=batches).rows
    assert "dead/network.0" not in rows[0]  # lays the images out
    dead = [name for name in rows[0] if name.startswith("dead/")]
    assert len(dead) == 3
    assert next(name for name in rows[0] if name.startswith("gradient/")) == "gradient/network.1"
