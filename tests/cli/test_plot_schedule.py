"""What is drawn is what the run then does."""

import json
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning import (
    ConfidencePenaltyMixin,
    DigitsDataModule,
    ImageClassifier,
    PiModelMixin,
    SAMMixin,
    Schedule,
    compose,
)
from lightning_tuning.cli.curves import Line, read_schedules
from lightning_tuning.cli.plot_schedule import table
from lightning_tuning.cli.probe import before_first_step
from lightning_tuning.errors import InvalidValueError
from tests.cli.toy import ToyData, ToyModel


class Recorder(pl.Callback):
    """The values that each optimizer step is made with."""

    def __init__(self, names=()):
        self.names, self.seen, self.epoch_ends = names, [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rates = [group["lr"] for group in optimizer.param_groups]
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        numbers = {name: getattr(pl_module, name) for name in self.names}
        self.seen.append(
            {"lr": rates, "weight_decay": decays, "accumulation": trainer.accumulate_grad_batches} | numbers
        )

    def on_train_epoch_end(self, trainer, pl_module):
        self.epoch_ends.append(trainer.global_step)


class Toy(ToyModel):
    """With a scheduler of torch's."""

    def __init__(self, schedule=None, interval="step", frequency=1):
        super().__init__()
        self.schedule, self.interval, self.frequency = schedule, interval, frequency

    def configure_optimizers(self):
        groups = [{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias], "lr": 0.02}]
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": self.interval, "frequency": self.frequency}
        return [optimizer], [{**scheduler, "monitor": "val/loss"}]


def both(make, settings, callbacks=lambda: [], data=ToyData, names=()):
    """What is read before the run, and what the run does."""
    found = before_first_step(read_schedules, make(), data(), settings, callbacks())
    recorder = Recorder(names)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks(), recorder],
        **settings,
    )
    trainer.fit(make(), datamodule=data())
    return found, recorder


def warm(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 6)], [3])


TORCH = {
    "none": {},
    "steps": {"schedule": warm},
    "every second batch": {"schedule": lambda o: StepLR(o, 1, 0.5), "frequency": 2},
    "epochs": {"schedule": lambda o: StepLR(o, 1, 0.5), "interval": "epoch"},
    "every second epoch": {"schedule": lambda o: StepLR(o, 1, 0.5), "interval": "epoch", "frequency": 2},
    "one cycle": {"schedule": lambda o: OneCycleLR(o, [0.1, 0.02], total_steps=100)},
}
LENGTHS = {
    "epochs": {"max_epochs": 4},
    "steps": {"max_steps": 7},
    "accumulation": {"max_epochs": 4, "accumulate_grad_batches": 2},
    "fewer batches": {"max_epochs": 4, "limit_train_batches": 2},
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scheduler", TORCH)
def test_the_rates_of_torchs_schedulers_are_those_of_the_run(scheduler, length):
    found, run = both(lambda: Toy(**TORCH[scheduler]), LENGTHS[length])
    assert found.steps == len(run.seen)
    assert found.epoch_ends == run.epoch_ends
    assert [line.name for line in found.lines] == ["0.lr", "1.lr"]
    for index, line in enumerate(found.lines):
        assert line.values == [seen["lr"][index] for seen in run.seen]


def classifier(**kwargs):
    return ImageClassifier(network="mlp", image_size=8, in_channels=1, num_classes=10, **kwargs)


def digits():
    return DigitsDataModule(image_size=8, batch_size=64, steps_per_epoch=4, val_size=0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential"])
def test_a_ready_hosts_schedule(schedule):
    found, run = both(lambda: classifier(schedule=schedule, warmup_steps=3), {"max_epochs": 3}, data=digits)
    (line,) = found.lines
    assert line.name == "lr"
    assert line.values == [seen["lr"][0] for seen in run.seen]
    assert line.warmup_ends == 2


def schedules():
    return [
        Schedule("lr", "cosine(end=1%)", warmup="1ep", layer_decay=0.5),
        Schedule("weight_decay", "linear(end=0.4)"),
        Schedule("sam_rho", "constant", warmup="4st"),
        Schedule("accumulation", "multi_step(2ep, gamma=2)"),
    ]


def test_the_callback_schedule_with_every_kind_of_target():
    def make():
        return classifier(sam_rho=0.1, weight_decay=0.1, optimizer="adamw")

    found, run = both(make, {"max_epochs": 5}, schedules, digits, ["sam_rho"])
    assert found.steps == len(run.seen) == 4 * 2 + 2 * 3
    lines = {line.name: line.values for line in found.lines}
    seen_rates = [list(rates) for rates in zip(*(seen["lr"] for seen in run.seen), strict=True)]
    drawn = [line.values for line in found.lines if line.panel == "learning rate"]
    assert all(rates in drawn for rates in seen_rates)
    assert all(rates in seen_rates for rates in drawn)
    assert len(drawn) == len({str(rates) for rates in seen_rates}) > 1
    assert lines["weight_decay"] == [max(seen["weight_decay"]) for seen in run.seen]
    assert lines["sam_rho"] == [seen["sam_rho"] for seen in run.seen]
    assert lines["accumulation"] == [seen["accumulation"] for seen in run.seen]


def test_the_accumulation_of_lightnings_scheduler_counts():
    def callbacks():
        return [GradientAccumulationScheduler({0: 3, 2: 1}), Schedule("lr", "linear", warmup="1ep")]

    found, run = both(Toy, {"max_epochs": 4}, callbacks)
    assert found.steps == len(run.seen) == 2 + 2 * 3
    assert [line.values for line in found.lines] == [[seen["lr"][i] for seen in run.seen] for i in (0, 1)]


class Ramped(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(pl_module.ramped(pl_module.pi_model_weight, pl_module.pi_model_ramp))


class Net(ToyModel):
    num_classes = 2

    def forward(self, x):
        return torch.nn.functional.dropout(self.layer(x), 0.3, self.training)

    def compute_loss(self, logits, target):
        return torch.nn.functional.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        return self.compute_loss(self(batch[0]), batch[1])


Both = compose(Net, PiModelMixin, ConfidencePenaltyMixin, SAMMixin, name="Both")


@pytest.mark.parametrize("scheduled", [False, True])
def test_ramps(scheduled):
    def make():
        return Both(pi_model_weight=3.0, pi_model_ramp="sigmoid 50%", confidence_penalty_weight=0.1, sam_rho=0.0)

    def callbacks():
        return [Schedule("pi_model_weight", "linear")] if scheduled else []

    found = before_first_step(read_schedules, make(), ToyData(), {"max_epochs": 4}, callbacks())
    ramped = Ramped()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[*callbacks(), ramped], **quiet).fit(
        make(), datamodule=ToyData()
    )
    (line,) = [line for line in found.lines if line.name == "pi_model_weight, ramped"]
    assert line.values == pytest.approx(ramped.seen)
    assert scheduled == ("pi_model_weight" in [line.name for line in found.lines])


@pytest.mark.parametrize("devices", [2, "2", [0, 1]])
def test_each_of_several_processes_gets_its_share_of_the_data(devices):
    settings = {"max_epochs": 2, "devices": devices}
    toy = before_first_step(read_schedules, Toy(), ToyData(batch_size=5), settings, [])
    assert toy.steps == 2 * math.ceil(24 / 2 / 5)
    own = before_first_step(
        read_schedules, classifier(), DigitsDataModule(image_size=8, batch_size=64, val_size=0), settings, []
    )
    assert own.steps == 2 * math.ceil(1437 / 64 / 2)
    two_nodes = before_first_step(read_schedules, Toy(), ToyData(batch_size=2), {**settings, "num_nodes": 3}, [])
    assert two_nodes.steps == 2 * math.ceil(24 / 6 / 2)


def test_a_plateau_is_noted_and_not_drawn():
    found = before_first_step(
        read_schedules, Toy(lambda o: ReduceLROnPlateau(o, patience=0), "epoch"), ToyData(), {"max_epochs": 3}, []
    )
    assert [set(line.values) for line in found.lines] == [{0.1}, {0.02}]
    assert found.notes == ["The learning rate falls when val/loss stops to improve, which is not drawn."]
    found = before_first_step(
        read_schedules, Toy(), ToyData(), {"max_epochs": 3}, [Schedule("lr", "plateau(val/accuracy, mode=max)")]
    )
    assert found.notes == ["lr falls when val/accuracy stops to improve, which is not drawn."]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(2), torch.tensor(0)


class EndlessData(ToyData):
    def train_dataloader(self):
        return DataLoader(Endless(), 4)


def test_a_run_that_only_its_steps_end():
    found = before_first_step(read_schedules, Toy(warm), EndlessData(), {"max_steps": 9}, [])
    assert (found.steps, found.epoch_ends) == (9, [])
    with pytest.raises(Exception, match=r"The picture needs the run's length, .* set trainer.max_steps"):
        before_first_step(read_schedules, Toy(warm), EndlessData(), {"max_epochs": 9}, [])


class MissingData(ToyData):
    def setup(self, stage):
        raise FileNotFoundError("the data are not here")


def test_the_number_of_batches_can_be_given_where_the_data_are_not():
    found = before_first_step(read_schedules, Toy(warm), MissingData(), {"max_epochs": 3, "devices": 4}, [], 5)
    assert found.steps == 15
    with pytest.raises(FileNotFoundError):
        before_first_step(read_schedules, Toy(warm), MissingData(), {"max_epochs": 3}, [])


class Manual(ToyModel):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimization_is_refused():
    with pytest.raises(InvalidValueError, match="Manual steps its optimizers and schedulers itself"):
        before_first_step(read_schedules, Manual(), ToyData(), {"max_epochs": 3}, [])


@pytest.mark.parametrize(("values", "ends"), [
    ([1, 1, 1], None),
    ([0.5, 1, 1, 0.2], 1),
    ([0.2, 0.2, 0.6, 0.6, 1, 1, 1], 4),  # epoch by epoch
    ([1, 0.5, 2, 2], None),
    ([1, 2, 3], None),  # to the run's end
    ([2, 2, 4, 4], None),  # one jump later on
    ([1, 2, 1, 3], 1),
])  # fmt: skip
def test_where_a_warmup_ends(values, ends):
    assert Line("lr", values, "lr").warmup_ends == ends


def test_the_command(run, config, tmp_path, capsys):
    assert run("plot-schedule", "--trainer.callbacks+=Schedule", "--trainer.callbacks.warmup=3st") is None
    assert not Path("runs").exists()
    assert Path("toy-schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "toy-schedule.png"}
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["lr", "0.0333", "0.1", "2", "0.025", "2"]
    assert out[2:] == ["6 optimizer steps in 2 epochs of one process.", "Picture: toy-schedule.png"]


def test_it_replaces_its_own_pictures_alone(run, capsys):
    run("plot-schedule", "--plot.path=a/b.png")
    first = Path("a/b.png").read_bytes()
    run("plot-schedule", "--plot.path=a/b.png", "--trainer.max_epochs=5")
    assert Path("a/b.png").read_bytes() != first
    Path("mine.png").write_bytes(b"\x89PNG of mine")
    capsys.readouterr()
    run("plot-schedule", "--plot.path=mine.png", code=2)
    assert "mine.png is there already and was not drawn by this command" in capsys.readouterr().err
    assert Path("mine.png").read_bytes() == b"\x89PNG of mine"
    run("plot-schedule", "--plot.path=picture.pdf", code=2)
    assert "plot.path is 'picture.pdf'; it must be the name of a .png file." in capsys.readouterr().err


def test_what_fit_refuses_is_refused(run, capsys):
    run("plot-schedule", "--trainer.callbacks+=Schedule", "--trainer.callbacks.target=sam_rho", code=2)
    assert "Schedule: target is 'sam_rho'" in capsys.readouterr().err


def test_lr_range_test_from_the_command_line(run):
    folder = run(
        *("fit", "--trainer.callbacks+=LRRangeTest", "--trainer.callbacks.apply=true", "--trainer.callbacks.steps=30"),
        "--trainer.callbacks.rule=minimum",
    )
    found = json.loads((folder / "lr_range_test.json").read_text())
    assert (folder / "lr_range_test.png").exists()
    rates = [json.loads(line).get("lr-SGD") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(filter(None, rates)) == {found["applied"]}
    assert found["applied"] != found["configured"]


def test_the_table_has_a_column_for_each_number():
    lines = [Line("lr", [0.0001, 0.001, 0.001, 0.0], "lr"), Line("a_long_name", [2.0] * 4, "a_long_name")]
    head, *rows = table(lines)
    assert head.split() == ["schedule", "start", "peak", "at", "step", "end", "warm-up", "ends"]
    assert [row.split() for row in rows] == [
        ["lr", "0.0001", "0.001", "1", "0", "1"],
        ["a_long_name", "2", "2", "0", "2", "-"],
    ]
    assert len({len(row) for row in (head, *rows)}) == 1
