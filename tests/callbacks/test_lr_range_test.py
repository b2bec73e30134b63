"""LRRangeTest leaves nothing behind, measures what training would, and sets rates in proportion."""

import csv
import json
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_tuning import (
    AutoClip,
    EarlyStop,
    ExactResume,
    FiniteGuard,
    GradientNoise,
    ImageClassifier,
    LRRangeTest,
    Schedule,
    WeightEMA,
)
from lightning_tuning.errors import InvalidValueError
from tests.contract.callback_settings import CALLBACKS
from tests.contract.nets import Host, assert_equal_state, loaders, make, trainer
from tests.contract.settings import ROWS, Setting
from tests.contract.test_contract_ddp import SaveRank

DATA = Setting({})
QUICK = {"sam", "ema_teacher", "freematch", "temporal_ensembling", "self_distillation", "free_adversarial", "dropout"}


class Batches(pl.Callback):
    """The batches, losses and rates of a run, and the random numbers at each batch's start."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = torch.get_rng_state().sum().item(), random.getstate()[1][-1], np.random.get_state()[2]  # noqa: NPY002
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        connector = trainer._logger_connector
        metrics = {**connector._logged_metrics, **connector._callback_metrics, **connector._progress_bar_metrics}
        self.seen.append((str(batch), batch_idx, trainer.global_step, rates, state, sorted(metrics)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((outputs["loss"].item(), len(trainer.optimizers[0].state)))


def journal(made):
    path = Path(made.logger.experiment.metrics_file_path)
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def assert_same_run(build, tmp_path, others=lambda: [], first=False, **kwargs):
    """Train with the test and without it, and compare everything that there is."""
    runs = []
    for number, test in enumerate([[], [LRRangeTest(steps=12, max_lr=1.0)]]):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
        net, data = build()
        batches, logger = Batches(), CSVLogger(tmp_path, version=number)
        callbacks = [*test, *others(), batches] if first else [*others(), *test, batches]
        made = trainer(tmp_path, callbacks=callbacks, logger=logger, log_every_n_steps=1, **kwargs)
        made.fit(net, *data) if isinstance(data, tuple) else made.fit(net, data)
        scaler = getattr(made.precision_plugin, "scaler", None)
        runs.append({
            "net": dict(net.state_dict()),
            "optimizer": made.optimizers[0].state_dict(),
            "loops": made.fit_loop.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": torch.get_rng_state(),
            "journal": journal(made),
            "metrics": {name: float(value) for name, value in made.callback_metrics.items()},
            "batches": batches.seen,
            # but for the folder of the run, in which some keep files
            "callbacks": [str(c.state_dict()).replace(made.log_dir, "") for c in callbacks if c not in test],
            "grads": [parameter.grad is None for parameter in net.parameters()],
        })  # fmt: skip
        if test:
            assert test[0].suggestions
    assert_equal_state(*runs)


@pytest.mark.parametrize("row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_the_run_is_bitwise_the_run_without_it_with_each_technique(row, tmp_path):
    assert_same_run(lambda: (make(row), loaders(ROWS[row][1], 8)), tmp_path)


class Rich(Host):
    """A host that keeps things in every way there is."""

    def __init__(self, optimizer=torch.optim.Adam):
        super().__init__()
        self.make, self.accuracy = optimizer, MulticlassAccuracy(3)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.seen, self.generator = [0], torch.Generator().manual_seed(3)

    def training_step(self, batch, batch_idx):
        x, target = batch
        noise = torch.rand(x.shape, generator=self.generator) + 0.1 * random.random() * np.random.rand()  # noqa: NPY002
        logits = self(x + 0.1 * noise + self.hidden.sum() + 0.001 * len(self.seen))
        self.hidden += 0.01 * torch.rand(2)
        self.seen.append(batch_idx)
        self.accuracy(logits, target)
        self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True)
        loss = self.compute_loss(logits, target)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.logger.log_metrics({"train/own": loss.item()}, step=self.global_step)
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": StepLR(optimizer, 3, 0.5), "interval": "step"}]


class OwnNoise(Dataset):
    """Draws from a generator of its own and counts."""

    def __init__(self):
        self.x, self.y = torch.randn(32, 2, 5, 5), torch.randint(3, (32,))
        self.rng, self.count = np.random.default_rng(0), 0

    def __len__(self):
        return 32

    def __getitem__(self, index):
        self.count += 1
        return self.x[index] + 0.01 * self.count * self.rng.random(), self.y[index]


def shuffled(**kwargs):
    dataset = OwnNoise()
    dataset.x = dataset.x.float()
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(1))
    return DataLoader(dataset, 8, sampler=sampler, collate_fn=collate, **kwargs)


def collate(items):
    return torch.stack([x for x, _ in items]).float(), torch.stack([y for _, y in items])


SETTINGS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"precision": "16-mixed"},
    "few batches": {"limit_train_batches": 3, "max_epochs": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_run_is_bitwise_the_run_without_it_whatever_the_host_keeps(name, tmp_path):
    assert_same_run(lambda: (Rich(), shuffled()), tmp_path, **SETTINGS[name])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])
def test_other_optimizers(optimizer, tmp_path):
    assert_same_run(lambda: (Rich(optimizer), shuffled()), tmp_path)


def test_beside_callbacks_that_edit_gradients_and_change_the_accumulation(tmp_path):
    def others():
        return [ExactResume(seed=1), AutoClip(history=4), GradientNoise(), GradientAccumulationScheduler({0: 2, 1: 1})]

    assert_same_run(lambda: (Rich(), shuffled()), tmp_path, others=others)


def schedules():
    return [Schedule("lr", "cosine", warmup="3st"), Schedule("weight_decay", "linear(end=0.1)")]


def test_beside_schedules(tmp_path):
    assert_same_run(lambda: (make("sam"), loaders(DATA, 8)), tmp_path, others=schedules)
    with_its_own = {"schedule": "cosine", "warmup_steps": 3, "optimizer": "adamw"}
    assert_same_run(lambda: (classifier(**with_its_own), pixels()), tmp_path / "own")


def classifier(**kwargs):
    return ImageClassifier(network="mlp", in_channels=2, image_size=5, num_classes=3, **kwargs)


def pixels():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 2, 5, 5, generator=generator), torch.randint(3, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), 8, generator=torch.Generator())


@pytest.mark.parametrize("how", ["callback", "layer decay", "host"])
def test_a_schedule_goes_on_from_the_applied_rate(how, tmp_path):
    """It begins with its warm-up at the rate that was found, and is what it is in a run configured with that rate."""
    own = {"schedule": "cosine", "warmup_steps": 3} if how == "host" else {}
    decay = 0.5 if how == "layer decay" else None

    def run(lr, *callbacks):
        torch.manual_seed(0)
        net, rates = classifier(lr=lr, optimizer="sgd", **own), Batches()
        shaped = [] if own else [Schedule("lr", "cosine", warmup="3st", layer_decay=decay)]
        trainer(tmp_path, callbacks=[*shaped, *callbacks, rates], max_epochs=2).fit(net, pixels())
        return net, [seen[3] for seen in rates.seen if len(seen) > 2]

    test = LRRangeTest(min_lr=1e-4, max_lr=10.0, steps=30, apply=True)
    found, rates = run(0.001, test)
    lr = test.suggestions["steepest"]
    assert lr > 0.002
    configured, expected = run(lr)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert max(rates[2]) == pytest.approx(lr)
    assert rates[0][-1] == pytest.approx(lr / 3)
    for mine, theirs in zip(found.parameters(), configured.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers(persistent, tmp_path):
    assert_same_run(lambda: (Rich(), shuffled(num_workers=1, persistent_workers=persistent)), tmp_path)


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(21):
            torch.manual_seed(index)
            yield torch.randn(2, 5, 5), torch.tensor(index % 3)


@pytest.mark.parametrize("limit", [1.0, 3])
def test_data_without_a_length(limit, tmp_path):
    # The stream of this loader seeds the default generator; the prefetching of a loader without length is kept too.
    assert_same_run(lambda: (Rich(), DataLoader(Stream(), 4)), tmp_path, limit_train_batches=limit)


class OwnLoader:
    """No DataLoader, and its own iterator."""

    def __init__(self):
        self.batches, self.place = list(loaders(DATA, 8)), 0

    def __iter__(self):
        for self.place in range(len(self.batches)):  # noqa: B020
            yield self.batches[(self.place + 1) % 4]

    def __len__(self):
        return 4


def test_other_loaders_and_validation_within_epochs(tmp_path):
    assert_same_run(lambda: (Rich(), (OwnLoader(), loaders(DATA, 8))), tmp_path, val_check_interval=2)


class Linear(pl.LightningModule):
    """Least squares on whole batches, whose steps are easily made by hand."""

    def __init__(self, groups=((1.0, 0.1), (0.25, 0.1)), schedule=None):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))
        self.rates, self.schedule = [ratio * lr for ratio, lr in groups], schedule

    def training_step(self, batch, batch_idx):
        x, y = batch
        return ((x @ self.a + self.b - y) ** 2).mean()

    def configure_optimizers(self):
        groups = [{"params": [p], "lr": lr} for p, lr in zip([self.a, self.b], self.rates, strict=True)]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


def least_squares():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3


class Unsized(IterableDataset):
    """The least squares without a length."""

    def __iter__(self):
        return iter(zip(*least_squares(), strict=True))


def swept(tmp_path, test, net=None, size=8, others=(), sized=True, **kwargs):
    """The range test of the least squares; what it wrote, and the Trainer."""
    net = (net or Linear()).double()
    made = trainer(tmp_path, callbacks=[test, *others], precision="64-true", **{"max_epochs": 1, **kwargs})
    dataset = TensorDataset(*least_squares()) if sized else Unsized()
    made.fit(net, DataLoader(dataset, size, generator=torch.Generator()))
    return json.loads((tmp_path / "lr_range_test.json").read_text()), made


def by_hand(rates, size, accumulate=1):
    """The losses after steps at these rates, in numpy: the second group at a quarter of the rate."""
    x, y = (part.numpy() for part in least_squares())
    batches = [slice(start, start + size) for start in range(0, 24, size)]
    windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
    a, b, losses = np.zeros(3), 0.0, []
    for step, lr in enumerate([*rates, 0.0]):
        grad_a, grad_b, window_losses = np.zeros(3), 0.0, []
        window = windows[step % len(windows)]
        for part in window:
            error = x[part] @ a + b - y[part]
            window_losses.append((error**2).mean())
            grad_a += 2 * (error @ x[part]) / len(error) / accumulate
            grad_b += 2 * error.mean() / accumulate
        losses.append(np.mean(window_losses))
        a, b = a - lr * grad_a, b - 0.25 * lr * grad_b
    return losses[1:]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_losses_are_those_of_steps_made_by_hand(accumulate, sized, tmp_path):
    """Ratios of groups, windows, the incomplete window at an epoch's end, and which rate a loss belongs to."""
    test = LRRangeTest(min_lr=1e-3, max_lr=0.2, steps=14, smoothing=0.5)
    found, _ = swept(tmp_path, test, size=8, sized=sized, accumulate_grad_batches=accumulate)
    rates = np.geomspace(1e-3, 0.2, 14)
    np.testing.assert_allclose(found["lrs"], rates)
    losses = by_hand(rates, 8, accumulate)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-6)  # Lightning hands them over in float32
    weights = 0.5 ** np.arange(13, -1, -1)
    assert found["averages"][-1] == pytest.approx((weights * losses).sum() / weights.sum())


class Zeroes(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.zero_()


class Edits(Zeroes):
    changes = ("gradient",)


@pytest.mark.parametrize("callback", [Zeroes, Edits])
def test_of_the_callbacks_those_act_that_edit_gradients(callback, tmp_path):
    test = LRRangeTest(min_lr=1e-3, max_lr=0.2, steps=14)
    found, _ = swept(tmp_path, test, others=[callback()])
    rates = np.geomspace(1e-3, 0.2, 14)
    losses = by_hand(rates if callback is Zeroes else 0 * rates, 8)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-6)


def test_it_stops_where_the_loss_diverges(tmp_path):
    test = LRRangeTest(min_lr=1e-3, max_lr=100.0, steps=60, smoothing=0.0, rule="divergence", divergence_fraction=0.5)
    found, _ = swept(tmp_path, test)
    rates = np.geomspace(1e-3, 100, 60)
    losses = by_hand(rates, 8)
    stop = next(i for i in range(60) if losses[i] > 4 * min(losses[: i + 1]))
    assert found["diverged_at"] == pytest.approx(rates[stop])
    assert len(found["lrs"]) == stop + 1
    assert test.suggestions["divergence"] == pytest.approx(rates[stop] / 2)


class Breaks(Linear):
    """Its loss is not finite from the n-th batch on that it sees."""

    def __init__(self, at, value=float("nan")):
        super().__init__()
        self.left, self.value = at, value

    def training_step(self, batch, batch_idx):
        self.left -= 1
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.left < 0 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_it_stops_at_a_loss_that_is_not_finite(value, tmp_path):
    net = Breaks(20, value)
    found, _ = swept(tmp_path, LRRangeTest(min_lr=1e-5, max_lr=0.01, steps=40), net)
    rates = np.geomspace(1e-5, 0.01, 40)
    assert found["diverged_at"] == pytest.approx(rates[19])  # the 21st batch tells what the 20th rate has led to
    assert len(found["losses"]) == 19
    assert np.isfinite(found["losses"]).all()
    assert net.left == 20 - 3  # of the run's own three batches
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_loss_that_is_never_finite_suggests_nothing_and_changes_nothing(tmp_path):
    with pytest.warns(UserWarning, match=r"'\w+' finds no learning rate, so the run trains at 0.1, .* not finite"):
        found, made = swept(tmp_path, LRRangeTest(apply=True), Breaks(0))
    assert (found["lrs"], found["applied"]) == ([], None)
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [0.1, 0.025]


def warm(optimizer):
    return LambdaLR(optimizer, lambda step: min((step + 1) / 4, 1.0))


def one_cycle(optimizer):
    return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=10)


def cyclic(optimizer):
    rates = [group["lr"] for group in optimizer.param_groups]
    return CyclicLR(optimizer, [lr / 10 for lr in rates], rates, step_size_up=2, cycle_momentum=False)


def sequential(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), StepLR(optimizer, 2)], milestones=[3])


SCHEDULES = {"none": None, "warm-up": warm, "one cycle": one_cycle, "cyclic": cyclic, "sequential": sequential}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_applied_rate_is_that_of_a_run_configured_with_it(name, tmp_path):
    """Of every group in proportion, under its schedule, from the first step on."""
    test = LRRangeTest(min_lr=1e-4, max_lr=1.0, steps=30, apply=True, rule="minimum")
    net = Linear(groups=((1.0, 0.02), (0.25, 0.02)), schedule=SCHEDULES[name])
    found, made = swept(tmp_path, test, net, max_epochs=3)
    lr = found["applied"]
    assert lr == test.suggestions["minimum"]
    assert found["configured"] == 0.02
    assert not 0.01 < lr < 0.04
    configured = Linear(groups=((1.0, lr), (0.25, lr)), schedule=SCHEDULES[name]).double()
    other = trainer(tmp_path, precision="64-true", max_epochs=3)
    other.fit(configured, DataLoader(TensorDataset(*least_squares()), 8, generator=torch.Generator()))
    for mine, theirs in zip(made.model.parameters(), configured.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(made.optimizers[0].param_groups, other.optimizers[0].param_groups, strict=True):
        assert mine["lr"] == pytest.approx(theirs["lr"], rel=1e-12)


def test_a_rate_that_is_a_tensor_stays_that_tensor(tmp_path):
    net = Linear()
    rates = [torch.tensor(0.1), torch.tensor(0.025)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip([net.a, net.b], rates, strict=True)]
    net.configure_optimizers = lambda: torch.optim.Adam(groups, lr=torch.tensor(0.1), foreach=False, capturable=False)
    found, made = swept(tmp_path, LRRangeTest(min_lr=1e-3, steps=30, apply=True, rule="minimum"), net)
    kept = [group["lr"] for group in made.optimizers[0].param_groups]
    assert [lr.item() for lr in kept] == pytest.approx([found["applied"], found["applied"] / 4])


class Scheduled(Host):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": StepLR(optimizer, 3, 0.5), "interval": "step"}]


@pytest.mark.parametrize("apply", [False, True])
def test_a_resumed_run_is_left_alone_and_is_the_straight_run_bitwise(apply, tmp_path):
    def run(epochs, ckpt_path=None, seed=0):
        torch.manual_seed(seed)
        test = LRRangeTest(min_lr=1e-4, max_lr=1.0, steps=20, apply=apply, rule="minimum")
        net, made = Scheduled(), trainer(tmp_path, callbacks=[ExactResume(seed=1), test], max_epochs=epochs)
        made.fit(net, loaders(DATA, 8), ckpt_path=ckpt_path)
        return net, test, made

    straight, test, made = run(3)
    assert test.suggestions
    run(1)[2].save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "lr_range_test.png").unlink()
    resumed, again, made_again = run(3, tmp_path / "a.ckpt", seed=9)
    assert not again.suggestions
    assert not (tmp_path / "lr_range_test.png").exists()
    assert made.global_step == made_again.global_step == 12
    assert_equal_state(dict(straight.state_dict()), dict(resumed.state_dict()))
    assert_equal_state(made.optimizers[0].state_dict(), made_again.optimizers[0].state_dict())


class SaveSuggestions(SaveRank):
    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        (test,) = (c for c in trainer.callbacks if isinstance(c, LRRangeTest))
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        torch.save((test.suggestions, rates), self.folder / f"suggestions{trainer.global_rank}.pt")


def test_two_ranks_find_the_same_rates_as_one_process(tmp_path):
    net = make("dropout", plain=True, off=True).double()
    test = LRRangeTest(min_lr=1e-3, max_lr=10.0, steps=20, apply=True, rule="minimum")
    settings = {"precision": "64-true", "max_epochs": 1}
    made = trainer(tmp_path, callbacks=[test, SaveSuggestions(tmp_path)], strategy="ddp_fork", devices=2, **settings)
    made.fit(net, loaders(DATA, 4, dtype=torch.float64))
    ranks = [torch.load(tmp_path / f"suggestions{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    one = LRRangeTest(min_lr=1e-3, max_lr=10.0, steps=20)
    trainer(tmp_path, callbacks=[one], **settings).fit(
        make("dropout", plain=True, off=True).double(), loaders(DATA, 8, dtype=torch.float64)
    )
    assert ranks[0][0] == pytest.approx(one.suggestions, rel=1e-6)
    assert one.suggestions["minimum"] is not None


class Interrupts(Rich):
    def training_step(self, batch, batch_idx):
        if len(self.seen) > 5:
            raise KeyError("broken off")
        return super().training_step(batch, batch_idx)


def test_what_is_raised_within_the_test_leaves_the_module_as_it_was(tmp_path):
    torch.manual_seed(0)
    net, test = Interrupts(), LRRangeTest(steps=20)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = trainer(tmp_path, callbacks=[test], logger=CSVLogger(tmp_path))
    with pytest.raises(KeyError, match="broken off"):
        made.fit(net, loaders(DATA, 8))
    assert_equal_state(before, dict(net.state_dict()))
    assert net.seen == [0]
    assert made.global_step == 0
    assert made.callbacks.count(test) == 1
    assert made.optimizers[0].param_groups[0]["lr"] == 0.01


def test_it_reports(tmp_path, told):
    logger = CSVLogger(tmp_path)
    test = LRRangeTest(min_lr=1e-4, max_lr=1.0, steps=30, apply=True, rule="steepest")
    torch.manual_seed(0)
    made = trainer(tmp_path, callbacks=[test], logger=logger, max_epochs=1)
    made.fit(Linear(), least_squares_loader())
    folder = Path(logger.log_dir)
    assert (folder / "lr_range_test.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((folder / "lr_range_test.json").read_text())
    assert content["suggestions"] == test.suggestions
    assert {path.name for path in folder.iterdir()} >= {"lr_range_test.png", "lr_range_test.json"}
    assert not list(folder.glob(".*"))
    lr = test.suggestions["steepest"]
    assert logger.experiment.hparams["lr_range_test_lr"] == lr
    assert f"* steepest   {lr:.3g}" in told.text
    assert f"The run trains at {lr:.3g} (steepest) instead of 0.1." in told.text
    assert "divergence" in told.text


def test_a_fast_dev_run_goes_without_it(tmp_path):
    test = LRRangeTest(steps=20)
    trainer(tmp_path, callbacks=[test], fast_dev_run=True).fit(Linear(), least_squares_loader())
    assert not test.suggestions


def least_squares_loader():
    return DataLoader([(x.float(), y.float()) for x, y in zip(*least_squares(), strict=True)], 8)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"min_lr": 0.0}, r"min_lr is 0.0; it must be a number in \(0, inf\)"),
    ({"min_lr": 1.0, "max_lr": 0.5}, r"max_lr is 0.5; it must be a number in \(1, inf\)"),
    ({"steps": 5}, "steps is 5; it must be an integer of at least 10"),
    ({"mode": "log"}, "mode is 'log'.*'exponential', 'linear'"),
    ({"rule": "vally"}, "rule is 'vally'; did you mean 'valley'"),
    ({"apply": "valley"}, "apply is 'valley'; it must be true or false. Name the rule as rule='valley'"),
    ({"smoothing": 1.0}, r"smoothing is 1.0; it must be a number in \[0, 1\)"),
    ({"divergence_factor": 1.0}, "divergence_factor is 1.0"),
    ({"divergence_fraction": 1.5}, "divergence_fraction is 1.5"),
])  # fmt: skip
def test_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        LRRangeTest(**arguments)


class Manual(Linear):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().step()


class Lazy(Linear):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(2)


class Iterates(Linear):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.parametrize(("net", "data", "message"), [
    (Manual, least_squares_loader, "Manual steps its optimizers itself"),
    (Lazy, least_squares_loader, "Lazy has lazy parameters"),
    (Iterates, least_squares_loader, "Iterates.training_step takes dataloader_iter"),
    (Linear, lambda: iter(list(least_squares_loader())), "the training data are an iterator"),
])  # fmt: skip
def test_trainings_whose_steps_cannot_be_taken_back_are_refused(net, data, message, tmp_path):
    with pytest.raises(MisconfigurationException, match=f"^LRRangeTest makes .* cannot be done: {message}"):
        trainer(tmp_path, callbacks=[LRRangeTest()]).fit(net(), data())


def test_a_model_without_a_rate_is_refused(tmp_path):
    net = Linear(groups=((1.0, 0.0), (0.25, 0.0)))
    with pytest.raises(InvalidValueError, match="none has a learning rate above 0"):
        trainer(tmp_path, callbacks=[LRRangeTest()]).fit(net, least_squares_loader())


@pytest.mark.parametrize("first", [True, False])
def test_guards_judge_the_runs_own_steps_alone(first, tmp_path):
    """What the test breaks is no bad batch of the run, and what the run breaks still is one."""
    test, guard, net = LRRangeTest(min_lr=1e-5, max_lr=0.01, steps=40), FiniteGuard(), Breaks(20)
    callbacks = [test, guard] if first else [guard, test]
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(net, least_squares_loader())
    assert json.loads((tmp_path / "lr_range_test.json").read_text())["diverged_at"] is not None
    assert not (tmp_path / "bad_batches.jsonl").exists()
    net.left = 1
    with pytest.warns(UserWarning, match="FiniteGuard: the update was not made"):
        trainer(tmp_path, callbacks=[FiniteGuard(), LRRangeTest(min_lr=1e-5, max_lr=0.01, steps=10)], max_epochs=1).fit(
            net, least_squares_loader()
        )
    assert (tmp_path / "bad_batches.jsonl").exists()


OTHERS = [kind for kind in CALLBACKS if kind is not LRRangeTest]
QUICK_OTHERS = {AutoClip, Schedule, FiniteGuard, WeightEMA, EarlyStop}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK_OTHERS else pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:Step .*Guard")
def test_the_run_is_bitwise_the_run_without_it_beside_each_callback(kind, first, tmp_path):
    data = loaders(DATA, 8)
    assert_same_run(
        lambda: (make("confidence_penalty", plain=CALLBACKS[kind].plain), (data, data)),
        tmp_path,
        others=lambda: [CALLBACKS[kind].make()],
        first=first,
        max_epochs=3,
    )
