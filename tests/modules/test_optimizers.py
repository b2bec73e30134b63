import math
from typing import get_args

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.modules import Classifier
from lightning_tuning.modules.optimizers import build_optimizer, parameter_groups
from lightning_tuning.modules.schedules import ScheduleName, build_schedule


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_decay_takes_kernels_and_matrices_only():
    network = small_network()
    conv, norm, _, linear = network
    decaying, other = parameter_groups(network.parameters(), 0.1)
    assert decaying["weight_decay"] == 0.1
    assert [id(p) for p in decaying["params"]] == [id(conv.weight), id(linear.weight)]
    assert other["weight_decay"] == 0.0
    assert [id(p) for p in other["params"]] == [id(p) for p in (conv.bias, norm.weight, norm.bias, linear.bias)]


def test_groups_leave_out_frozen_parameters_and_empty_groups():
    network = small_network()
    network[0].requires_grad_(False)
    (group,) = parameter_groups(network.parameters(), 0.0)
    assert [id(p) for p in group["params"]] == [id(p) for p in (*network[1].parameters(), *network[3].parameters())]
    (group,) = parameter_groups(network[1].parameters(), 0.1)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_named_optimizers(name, decay):
    optimizer = build_optimizer(name, small_network().parameters(), lr=0.02, weight_decay=decay, momentum=0.8)
    classes = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}
    assert type(optimizer) is classes.get(name, torch.optim.AdamW)
    assert [g["lr"] for g in optimizer.param_groups] == [0.02] * (2 if decay else 1)
    # torch's AdamW would decay by 0.01 if it were not told otherwise.
    assert [g["weight_decay"] for g in optimizer.param_groups] == ([0.1, 0.0] if decay else [0.0])
    if name == "sgd":
        assert all(g["momentum"] == 0.8 and g["nesterov"] for g in optimizer.param_groups)


def test_sgd_step_by_hand():
    p = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer("sgd", [p], lr=0.1, weight_decay=0.5, momentum=0.9)
    expected, buffer = 2.0, 0.0
    for _ in range(3):
        p.grad = torch.tensor([[1.0]])
        optimizer.step()
        gradient = 1.0 + 0.5 * expected
        buffer = gradient if buffer == 0 else 0.9 * buffer + gradient
        expected -= 0.1 * (gradient + 0.9 * buffer)
        assert p.item() == pytest.approx(expected, rel=1e-6)


def test_sgd_without_momentum_is_plain():
    group = build_optimizer("sgd", [nn.Parameter(torch.ones(1, 1))], lr=0.1, momentum=0.0).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def factors(name, steps, total, warmup=0):
    """What a learning rate of 1 is multiplied by, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = build_schedule(optimizer, name, warmup)
    schedule.set_total(total)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ("exponential", [0.01 ** (step / 8) for step in range(9)]),
        ("cosine", [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]),
    ],
)
def test_factors(name, expected):
    assert factors(name, 9, total=8) == expected
    assert factors(name, 13, total=12, warmup=4) == [0.25, 0.5, 0.75, 1.0, *expected]
    assert factors(name, 101, total=8)[-1] == expected[-1]


def test_a_run_shorter_than_its_warmup_only_warms_up():
    assert factors("cosine", 3, total=2, warmup=4) == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_every_name_makes_a_schedule(name):
    rates = factors(name, 10, total=10)
    assert max(rates) == 1.0
    assert all(rate > 0 for rate in rates)


class LearningRates(Callback):
    """The learning rate that each optimizer step uses, and the steps taken."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def data(samples=24):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 6, generator=g), torch.randint(0, 3, (samples,), generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def fit(loader=None, callbacks=(), ckpt_path=None, model=None, **settings):
    rates = LearningRates()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False}
    trainer = Trainer(callbacks=[rates, *callbacks], **quiet | settings)
    model = model or Classifier(nn.Linear(6, 3), num_classes=3, optimizer="sgd", lr=0.5, schedule="cosine")
    trainer.fit(model, data() if loader is None else loader, ckpt_path=ckpt_path)
    return rates.seen, trainer


def cosine(steps):
    return [0.25 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 2}, 12),
        ({"max_steps": 5}, 5),
        ({"max_epochs": 2, "max_steps": 100}, 12),
        ({"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 3, "callbacks": [GradientAccumulationScheduler({0: 4, 2: 1})]}, 2 + 2 + 6),
    ],
)
def test_a_named_schedule_fills_the_run_step_by_step(settings, steps):
    seen, trainer = fit(**settings)
    assert trainer.global_step == steps
    assert seen == pytest.approx(cosine(steps), abs=1e-12)


def test_a_resumed_schedule_goes_on_and_follows_the_new_length(tmp_path):
    _, first = fit(max_epochs=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    seen, _ = fit(max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert seen == pytest.approx(cosine(12)[6:], abs=1e-12)


def test_warmup_of_a_constant_schedule_in_a_run():
    model = Classifier(nn.Linear(6, 3), num_classes=3, optimizer="sgd", lr=0.5, warmup_steps=4)
    seen, _ = fit(max_epochs=1, model=model)
    assert seen == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(6), 0


def test_a_run_without_a_length_is_refused_before_the_first_step():
    loader = DataLoader(Endless(), batch_size=2)
    model = Classifier(nn.Linear(6, 3), num_classes=3, schedule="cosine")
    before = model.network.weight.detach().clone()
    with pytest.raises(MisconfigurationException, match=r"set trainer\.max_steps"):
        fit(loader, model=model, max_epochs=2)
    assert torch.equal(model.network.weight, before)
    seen, _ = fit(loader, max_steps=3)
    assert seen == pytest.approx(cosine(3), abs=1e-12)


def test_own_optimizer_and_scheduler_rule():
    frozen = nn.Linear(6, 3)
    frozen.bias.requires_grad_(False)
    model = Classifier(
        frozen,
        num_classes=3,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.25, weight_decay=0.1),
        schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
    )
    config = model.configure_optimizers()
    (group,) = config["optimizer"].param_groups
    assert [id(p) for p in group["params"]] == [id(frozen.weight)]
    assert (group["lr"], group["weight_decay"], config["lr_scheduler"]["interval"]) == (0.25, 0.1, "epoch")
    seen, _ = fit(max_epochs=2, model=model)
    assert seen == [0.25] * 6 + [0.125] * 6


def test_plateau_schedule_watches_its_monitor():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    model = Classifier(nn.Linear(6, 3), num_classes=3, schedule=plateau)
    assert model.configure_optimizers()["lr_scheduler"]["monitor"] == "val/loss"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, r"lr is 0; it must be a number in \(0, inf\)"),
        ({"lr": float("nan")}, r"lr is nan"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; it must be a number in \[0, inf\)"),
        ({"momentum": 1.0}, r"momentum is 1\.0; it must be a number in \[0, 1\)"),
        ({"warmup_steps": -1}, r"warmup_steps is -1"),
        ({"optimizer": "admw"}, r"optimizer is 'admw'; did you mean 'adamw'\?"),
        ({"schedule": "cosin"}, r"schedule is 'cosin'; did you mean 'cosine'\?"),
        ({"optimizer": torch.optim.SGD, "weight_decay": 0.1}, r"optimizer\.init_args\.weight_decay"),
        ({"schedule": torch.optim.lr_scheduler.StepLR, "warmup_steps": 3}, r"only a schedule given by name uses"),
        ({"schedule": "one_cycle", "warmup_steps": 3}, r"one_cycle has a rise of its own"),
    ],
)
def test_errors_say_what_to_write(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Classifier("mlp", **arguments)
