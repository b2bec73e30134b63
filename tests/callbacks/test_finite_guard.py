"""FiniteGuard: what a bad batch leaves as it was, under every setting; the record; the actions; the checkpoints."""

from __future__ import annotations

import re
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MinMetric

from lightning_tuning import (
    AutoClip,
    DigitsDataModule,
    ExactResume,
    FiniteGuard,
    PostHocEMA,
    WeightEMA,
    WeightSWA,
    compose,
    mixins,
)
from lightning_tuning.callbacks import _gradients
from lightning_tuning.callbacks._bad_batches import find_index
from lightning_tuning.errors import DivergenceError, InvalidValueError
from lightning_tuning.runs import RunCheckpoint
from tests.contract.nets import assert_equal_state, loaders, trainer
from tests.contract.settings import SETTINGS, Setting, with_companions
from tests.contract.test_all_callbacks import KeptPlace
from tests.contract.test_contract import Overflow
from tests.contract.test_contract_ddp import SaveRank

from .poison import HOW, Frail, Poison, all_finite, lines

DATA = Setting({})
STATEFUL = ("sam", "awp", "ema_teacher", "flexmatch", "temporal_ensembling", "free_adversarial", "spectral_norm")


@pytest.fixture(autouse=True)
def _warnings_are_no_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(seed=0, plain=False, optimizer="adam", **schedule):
    torch.manual_seed(seed)
    net = Frail(plain=plain)
    kinds = {
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=0.01),
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.05),
        "fused": lambda: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True),
    }
    net.configure_optimizers = kinds[optimizer]
    return net


def fit(net, callbacks, tmp_path, size=8, samples=32, ckpt_path=None, **kwargs):
    made = trainer(tmp_path, callbacks=callbacks, **kwargs)
    made.fit(net, loaders(DATA, size, samples), ckpt_path=ckpt_path)
    return made


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("how", HOW)
def test_a_bad_batch_changes_nothing(how, precision, tmp_path):
    if (how, precision) == ("gradient", "16-mixed"):  # that is what the scaler is for
        return
    net, poison, guard = make(), Poison(2, how=how), FiniteGuard()
    fit(net, [poison, guard], tmp_path, precision=precision, max_epochs=1)
    assert_equal_state(poison.states[2], poison.after[2])
    assert all_finite(net)
    for before, after in ((1, 2), (3, 4)):  # and the others do change something
        later = poison.states[after] if after < 4 else poison.after[3]
        assert not torch.equal(poison.states[before]["module"]["net.0.weight"], later["module"]["net.0.weight"])
        assert (
            later["module"]["net.1.num_batches_tracked"]
            == poison.states[before]["module"]["net.1.num_batches_tracked"] + 1
        )
    (line,) = lines(tmp_path)
    assert (line["step"], line["epoch"], line["batch"], line["rank"]) == (2, 0, 2, 0)
    assert ("loss" if how != "gradient" else "gradient") in line["reason"]
    assert line["guard"] == "FiniteGuard"
    assert guard.state_dict()["total"] == 1


def row(technique):
    marks = () if technique.stem in STATEFUL else pytest.mark.slow
    return pytest.param(technique, id=technique.stem, marks=marks)


@pytest.mark.parametrize("technique", [row(technique) for technique in mixins.TECHNIQUES])
def test_what_techniques_remember_is_not_moved_either(technique, tmp_path):
    setting, techniques = SETTINGS[technique], with_companions((technique,))
    torch.manual_seed(0)
    net = compose(Frail, *techniques, name="Net")(**setting.on)
    poison, guard = Poison(3, 6), FiniteGuard()
    made = trainer(tmp_path, callbacks=[poison, guard], max_epochs=2)
    made.fit(net, loaders(setting, 8))
    for step in (3, 6):
        assert_equal_state(poison.states[step], poison.after[step])
    assert all_finite(net)
    assert guard.state_dict()["total"] == 2  # however often a technique steps on a batch
    assert not torch.equal(poison.states[7]["module"]["net.0.weight"], poison.after[7]["module"]["net.0.weight"])


def test_the_first_batch_of_an_epoch_may_be_bad_though_a_table_is_folded_in_it(tmp_path):
    setting = SETTINGS[mixins.TemporalEnsemblingMixin]
    tables = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                tables.append({k: v.clone() for k, v in pl_module.temporal_ensembling_state.state_dict().items()})

    for callbacks in ([], [Poison(4), FiniteGuard()]):
        torch.manual_seed(0)
        net = compose(Frail, mixins.TemporalEnsemblingMixin, name="Net")(**setting.on)
        made = trainer(tmp_path, callbacks=[ExactResume(seed=3), *callbacks, Keep()], max_epochs=2)
        made.fit(net, loaders(setting, 8))
    whole, bad = tables
    for name in ("average", "updates", "epoch"):  # of the first epoch's predictions
        assert torch.equal(whole[name], bad[name])
    assert whole["average"].abs().sum() > 0
    assert int(whole["draws"].sum()) == 8
    assert int(bad["draws"].sum()) == 0


class SecondPassFails(pl.Callback):
    """Makes the loss of SAM's second pass of one step infinite."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.poison = None

    def on_before_backward(self, trainer, pl_module, loss):
        pl_module.poison = "loss" if trainer.global_step == 2 else None


def test_a_second_pass_of_sam_that_fails_changes_nothing(tmp_path):
    torch.manual_seed(0)
    net = compose(Frail, mixins.SAMMixin, name="Net")(sam_rho=0.1)
    poison, guard = Poison(), FiniteGuard()
    fit(net, [poison, SecondPassFails(), guard], tmp_path, max_epochs=1)
    assert_equal_state(poison.states[2], poison.after[2])
    assert "gradient" in lines(tmp_path)[0]["reason"]
    assert guard.state_dict()["total"] == 1


@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_bad_micro_batch_drops_its_window(at, tmp_path):
    """Three windows of three batches: what is left equals a run without the second window, bitwise."""
    nets = [make(plain=True), make(plain=True)]
    poison = Poison(at)
    made = fit(nets[0], [poison, FiniteGuard()], tmp_path, samples=72, accumulate_grad_batches=3, max_epochs=1)
    assert made.global_step == 3
    assert_equal_state(poison.states[3], poison.after[5])
    assert [line["batch"] for line in lines(tmp_path)] == [at]
    dataset = loaders(DATA, 8, 72).dataset
    kept = TensorDataset(*(torch.cat([t[:24], t[48:]]) for t in dataset.tensors))
    bare = trainer(tmp_path, accumulate_grad_batches=3, max_epochs=1)
    bare.fit(nets[1], DataLoader(kept, 8))
    assert_equal_state(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    assert_equal_state(made.optimizers[0].state_dict()["state"], bare.optimizers[0].state_dict()["state"])


def test_buffers_of_a_dropped_window_are_those_before_its_first_batch(tmp_path):
    poison = Poison(5)
    fit(make(), [poison, FiniteGuard()], tmp_path, samples=56, accumulate_grad_batches=3, max_epochs=1)
    before = poison.states[3]["module"]
    assert not torch.equal(before["net.1.running_mean"], poison.states[5]["module"]["net.1.running_mean"])
    assert_equal_state(before, poison.after[5]["module"])
    assert int(before["net.1.num_batches_tracked"]) == 3
    assert int(poison.after[6]["module"]["net.1.num_batches_tracked"]) == 4  # the short last window


def test_training_without_a_bad_batch_is_bitwise_what_it_is_without_the_guard(tmp_path):
    for settings in ({}, {"precision": "16-mixed"}, {"precision": "bf16-mixed", "accumulate_grad_batches": 3}):
        nets = [make(), make()]
        for net, callbacks in zip(nets, ([], [FiniteGuard()]), strict=True):
            torch.manual_seed(1)
            fit(net, callbacks, tmp_path, gradient_clip_val=0.5, **settings)
        assert_equal_state(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    assert lines(tmp_path) == []


class SetScale(pl.Callback):
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def on_fit_start(self, trainer, pl_module):
        trainer.precision_plugin.scaler._init_scale = self.scale


@pytest.mark.parametrize("optimizer", ["sgd", "fused"])
@pytest.mark.parametrize(("scale", "bad"), [(1024.0, 0), (1.0, 1)])
def test_under_fp16_an_overflow_is_the_scalers_business_until_its_scale_is_1(scale, bad, optimizer, tmp_path):
    net, guard, poison = make(plain=True, optimizer=optimizer), FiniteGuard(), Poison()
    made = fit(net, [SetScale(scale), Overflow(2), poison, guard], tmp_path, precision="16-mixed", max_epochs=1)
    assert guard.state_dict()["total"] == len(lines(tmp_path)) == bad
    assert made.precision_plugin.scaler.get_scale() == (scale if bad else scale / 2)
    assert_equal_state(poison.states[2], poison.after[2])


def test_under_fp16_a_bad_loss_leaves_the_scale_as_it_is(tmp_path):
    made = fit(make(), [SetScale(64.0), Poison(1), FiniteGuard()], tmp_path, precision="16-mixed", max_epochs=1)
    assert made.precision_plugin.scaler.get_scale() == 64
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("how", ["input", "constant"])
def test_two_ranks_decide_together(how, tmp_path):
    """The infinite constant is no part of any gradient, so rank 0 knows of it by the reduction alone."""
    ranks = {"strategy": "ddp_fork", "devices": 2}
    callbacks = [Poison(1, how=how, rank=1), FiniteGuard(), SaveRank(tmp_path)]
    fit(make(plain=True), callbacks, tmp_path, size=4, max_epochs=1, **ranks)
    rank0, rank1 = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal_state(rank0, rank1)
    assert all(torch.isfinite(value).all() for value in rank0.values())
    assert [(line["rank"], line["batch"]) for line in lines(tmp_path)] == [(1, 1)]
    # What one process learns from the other three steps.
    dataset = loaders(DATA, 8, 32).dataset
    kept = TensorDataset(*(torch.cat([t[:8], t[16:]]) for t in dataset.tensors))
    net = make(plain=True)
    trainer(tmp_path, max_epochs=1).fit(net, DataLoader(kept, 8))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(rank0[name], value, rtol=1e-4, atol=1e-6)


# The record.


def test_the_ids_of_a_batch():
    ids, x, y = torch.tensor([4, 2]), torch.zeros(2, 3), torch.zeros(2)
    assert find_index((x, y, ids)) is ids
    assert find_index({"x": x, "index": ids}) is ids
    assert find_index({"labeled": (x, y), "unlabeled": {"weak": x, "index": ids}}) == {"unlabeled": ids}
    assert find_index((x, y)) is find_index((x, y, y)) is find_index({"labeled": (x, y)}) is find_index(x) is None


class Third(Frail):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


def test_samples_are_known_by_ids_or_by_the_sampler(tmp_path):
    x, y = loaders(DATA, 8, 32).dataset.tensors
    ids = torch.arange(100, 132)
    shuffled = DataLoader(TensorDataset(x, y, ids), 8, shuffle=True)
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[2].tolist() if len(batch) > 2 else None)

    trainer(tmp_path, callbacks=[Keep(), Poison(1), FiniteGuard()], max_epochs=1).fit(Third(), shuffled)
    in_order = DataLoader(TensorDataset(x, y), 8)
    trainer(tmp_path, callbacks=[Poison(2), FiniteGuard()], max_epochs=1).fit(Frail(), in_order)
    unknown = DataLoader(TensorDataset(x, y), 8, shuffle=True)
    trainer(tmp_path, callbacks=[Poison(2), FiniteGuard()], max_epochs=1).fit(Frail(), unknown)
    assert [line["samples"] for line in lines(tmp_path)] == [seen[1], [*range(16, 24)], None]


def test_samples_of_the_packages_own_loaders(tmp_path):
    data = DigitsDataModule(batch_size=4, unlabeled_batch_size=6, num_labels=50, augment="none", steps_per_epoch=3)
    data.setup("fit")
    found = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            found.append(batch["unlabeled"]["index"].tolist())

    class Net(Frail):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["labeled"], batch_idx)

    model = Net()
    model(next(iter(data.train_dataloader()))["labeled"][0])
    trainer(tmp_path, callbacks=[Keep(), Poison(4), FiniteGuard()], max_epochs=2).fit(model, data)
    (line,) = lines(tmp_path)
    assert (line["epoch"], line["batch"]) == (1, 1)
    assert line["samples"]["unlabeled"] == data.unlabeled_indices[found[4]].tolist()
    assert set(line["samples"]["labeled"]) <= set(data.labeled_indices.tolist())


def test_the_user_is_told_now_and_then(tmp_path):
    with pytest.warns(UserWarning, match=r"FiniteGuard: the update was not made: the loss was nan. It was batch 1 on"):
        fit(make(), [Poison(*range(1, 6)), FiniteGuard()], tmp_path)
    told = (tmp_path / "diagnosis.txt").read_text().splitlines()
    assert [re.search(r"\((\d) so far\)", line)[1] for line in told] == ["1", "2", "4"]


def test_the_number_of_bad_batches_is_logged(tmp_path):
    made = fit(make(), [Poison(1, 3), FiniteGuard()], tmp_path, logger=CSVLogger(tmp_path))
    assert made.logged_metrics["train/finite_guard"] == 2


# Patience.


def test_it_stops_after_patience_steps_in_a_row(tmp_path):
    guard = FiniteGuard(patience=3)
    with pytest.raises(DivergenceError, match=r"step 5, epoch 1: 3 steps in a row .* the loss was nan.*jsonl lists"):
        fit(make(), [Poison(0, 1, 3, 4, 5), guard], tmp_path, max_epochs=9)
    assert guard.state_dict()["total"] == 5


def test_it_stops_after_max_total_steps(tmp_path):
    with pytest.raises(DivergenceError, match=r"3 steps were refused in all \(max_total\)"):
        fit(make(), [Poison(0, 2, 4, 6), FiniteGuard(max_total=3)], tmp_path, max_epochs=9)


class Moves(pl.Callback):
    """The distance that one weight moves in each step, and the gradient there."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.weight, self.gradient = pl_module.net[0].weight.clone(), pl_module.net[0].weight.grad.clone()

    def on_train_batch_end(self, trainer, pl_module, *args):
        move = self.weight - pl_module.net[0].weight
        self.rates.append(float((move * self.gradient).sum() / self.gradient.square().sum()))


def test_reduce_lr_multiplies_what_the_schedule_says(tmp_path):
    net = make(plain=True).double()

    def configure():
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    net.configure_optimizers = configure
    moves, guard = Moves(), FiniteGuard(patience=2, action="reduce_lr", lr_factor=0.25)
    made = trainer(tmp_path, callbacks=[moves, Poison(1, 2), guard], precision="64-true", max_epochs=1)
    made.fit(net, loaders(DATA, 8, 40, torch.float64))
    expected = [0.05, 0.05 / 4 * 0.25, 0.05 / 5 * 0.25]
    assert [moves.rates[i] for i in (0, 3, 4)] == pytest.approx(expected, rel=1e-9)
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 6)
    assert guard.state_dict()["rate"] == 0.25


def test_reduce_lr_does_not_add_up_without_a_schedule(tmp_path):
    net, moves = make(plain=True, optimizer="sgd").double(), Moves()
    guard = FiniteGuard(patience=2, action="reduce_lr", lr_factor=0.25)
    made = trainer(tmp_path, callbacks=[moves, Poison(1, 2), guard], precision="64-true", max_epochs=1)
    made.fit(net, loaders(DATA, 8, 40, torch.float64))
    assert [moves.rates[i] for i in (0, 3, 4)] == pytest.approx([0.05, 0.0125, 0.0125], rel=1e-9)
    assert made.optimizers[0].param_groups[0]["lr"] == 0.05


def test_an_action_that_does_not_help_ends_in_a_stop(tmp_path):
    guard = FiniteGuard(patience=2, action="reduce_lr")
    with pytest.raises(DivergenceError, match="again after action: reduce_lr, and none was made since"):
        fit(make(), [Poison(*range(1, 9)), guard], tmp_path, max_epochs=9)
    assert guard.state_dict()["total"] == 4


def test_an_action_is_taken_again_after_good_steps(tmp_path):
    guard = FiniteGuard(patience=2, action="reduce_lr")
    fit(make(), [Poison(1, 2, 4, 5), guard], tmp_path)
    assert guard.state_dict()["rate"] == 0.25


class Break(pl.Callback):
    """Makes a weight infinite after a step, as an update can."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.net[0].weight.view(-1)[0] = float("inf")


TaughtFrail = compose(Frail, mixins.EMATeacherMixin, name="TaughtFrail")


def is_statistic(name: str) -> bool:
    return not name.startswith("ema_teacher") and name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_rewind_goes_back_to_the_snapshot_and_on(tmp_path):
    """Snapshots are of before the updates 0, 3 and 6. The weights break after step 8; two bad steps later those of 6
    are back."""
    torch.manual_seed(0)
    net, poison = TaughtFrail(ema_teacher_decay=0.9), Poison()
    net.configure_optimizers = lambda: torch.optim.Adam(net.trainable_parameters(), lr=0.01)
    guard = FiniteGuard(patience=2, action="rewind", rewind_every=3)
    made = fit(net, [poison, guard, Break(8)], tmp_path, max_epochs=3)
    assert made.global_step == 12
    before, after, rewound = poison.states[6], poison.after[6], poison.states[10]
    assert_equal_state(before["optimizer"], rewound["optimizer"])
    passed = {name: after["module"][name] for name in before["module"] if is_statistic(name)}  # in the forward pass
    assert_equal_state({**before["module"], **passed}, rewound["module"])
    assert not torch.equal(poison.states[10]["module"]["net.0.weight"], poison.states[11]["module"]["net.0.weight"])
    assert all_finite(net)
    assert int(net.ema_teacher_updates) == net._ema_updates == 8
    assert guard.state_dict()["total"] == 2
    text = (tmp_path / "diagnosis.txt").read_text()
    assert "are those of step 6 again" in text


@pytest.mark.parametrize("optimizer", ["adam", "fused"])
def test_a_snapshot_can_be_gone_back_to_again(optimizer, tmp_path):
    """Twice to before update 6; the update in between has moved the moments of the optimizer."""
    poison, guard = Poison(), FiniteGuard(patience=2, action="rewind", rewind_every=6)
    fit(make(optimizer=optimizer), [poison, guard, Break(8), Break(11)], tmp_path, max_epochs=4)
    assert guard.state_dict()["total"] == 4
    assert_equal_state(poison.states[6]["optimizer"], poison.states[10]["optimizer"])
    assert_equal_state(poison.states[10]["optimizer"], poison.states[13]["optimizer"])


@pytest.mark.parametrize("make_average", [WeightEMA, partial(WeightSWA, start="0st", every="1st"), PostHocEMA])
def test_averages_of_the_weights_are_rewound_with_them(make_average, tmp_path):
    """The same run, its weights broken in one step or not: the average goes back to before it."""
    average, seen = make_average(), []
    guard = FiniteGuard(patience=2, action="rewind", rewind_every=3)

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            kept = average.rewind_state()
            averages = [{name: value.clone() for name, value in values.items()} for values in kept["averages"]]
            seen.append((kept["updates"], averages))

    made = fit(make(plain=True), [Keep(), Break(8), average, guard], tmp_path, max_epochs=3)
    assert made.global_step == 12
    (updates, averages), (updates_again, averages_again) = seen[6], seen[10]
    assert updates == updates_again < seen[8][0]
    assert averages
    for one, other in zip(averages, averages_again, strict=True):
        assert_equal_state(one, other)
    assert not all(torch.isfinite(value).all() for values in seen[9][1] for value in values.values())
    assert all_finite(made.lightning_module)


def test_a_checkpoint_of_a_broken_average_is_not_written(tmp_path):
    class BreakAverage(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 8:
                average.rewind_state()["averages"][0]["net.0.weight"].fill_(float("nan"))

    average = WeightEMA()
    callbacks = [average, BreakAverage(), FiniteGuard(), ModelCheckpoint(tmp_path, "last", save_top_k=-1)]
    with pytest.raises(DivergenceError, match="The training has ended with"):
        fit(make(), callbacks, tmp_path, enable_checkpointing=None)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    assert saved(tmp_path / "last.ckpt") == 4


def test_rewind_without_a_good_step_stops(tmp_path):
    with pytest.raises(DivergenceError, match="there is nothing to rewind to"):
        fit(make(), [Poison(*range(9)), FiniteGuard(patience=2, action="rewind")], tmp_path, max_epochs=9)


@pytest.mark.parametrize("save", [4, 6, 7, 8], ids=["epoch", "before", "between", "at the rewind"])
def test_a_rewinding_run_resumes_bitwise(save, tmp_path):
    def run(seed, ckpt_path=None):
        torch.manual_seed(seed)
        net = TaughtFrail(ema_teacher_decay=0.9)
        guard = FiniteGuard(patience=2, action="rewind", rewind_every=2)
        keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=save, save_top_k=-1, save_on_exception=False)
        keeping = [] if ckpt_path else [keep]
        made = trainer(
            tmp_path,
            callbacks=[ExactResume(seed=3), Poison(1, 6, 7), guard, *keeping],
            max_epochs=3,
            enable_checkpointing=None,
        )
        made.fit(net, KeptPlace(loaders(DATA, 8).dataset, 8), ckpt_path=ckpt_path)
        return net, made, guard

    (net, made, guard), (again, made_again, guard_again) = run(0), run(9, tmp_path / "kept.ckpt")
    assert made.global_step == made_again.global_step
    assert guard.state_dict()["total"] == guard_again.state_dict()["total"] == 3
    assert_equal_state(dict(net.state_dict()), dict(again.state_dict()))
    assert_equal_state(made.optimizers[0].state_dict(), made_again.optimizers[0].state_dict())
    (*states,) = (kept.state_dict() for kept in (guard, guard_again))
    snapshots = [state.pop("snapshot") for state in states]
    assert states[0] == states[1]
    assert_equal_state(*(snapshot["tensors"] for snapshot in snapshots))
    assert_equal_state(*(snapshot["optimizers"][0] for snapshot in snapshots))


# Checkpoints.


def saved(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("where", ["weight", "buffer", "moment"])
def test_a_broken_state_never_overwrites_the_last_checkpoint(where, tmp_path):
    class Spoil(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 8:
                parts = {
                    "weight": pl_module.net[0].weight.data,
                    "buffer": pl_module.net[1].running_var,
                    "moment": trainer.optimizers[0].state[pl_module.net[0].weight]["exp_avg_sq"],
                }
                parts[where].view(-1)[0] = float("inf")

    numbered = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_last=True, save_on_exception=True)
    last = RunCheckpoint()
    last.dirpath, last.save_on_exception, numbered.CHECKPOINT_NAME_LAST = str(tmp_path), True, "the_last"
    with pytest.raises(DivergenceError, match=r"^The training has ended with weights, buffers or an optimizer's state"):
        fit(make(), [Spoil(), FiniteGuard(), last, numbered], tmp_path, enable_checkpointing=None)
    assert [saved(path) for path in sorted(tmp_path.glob("*.ckpt"))] == [4, 4, 4]
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"last.ckpt", "step=4.ckpt", "the_last.ckpt"}
    assert not set(vars(last)) & {"_save_topk_checkpoint", "_save_last_checkpoint"}


def test_stopping_with_good_weights_saves_them(tmp_path):
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    with pytest.raises(DivergenceError):
        fit(make(), [Poison(5, 6), FiniteGuard(patience=2), last], tmp_path, max_epochs=3, enable_checkpointing=None)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert kept["callbacks"]["FiniteGuard"]["in_a_row"] == 0


@pytest.mark.parametrize("kind", ["buffer", "frozen parameter", "metric"])
def test_a_mask_of_infinities_is_no_broken_state(kind, tmp_path):
    net, mask = make(), torch.tensor([0.0, -torch.inf])
    if kind == "buffer":
        net.register_buffer("mask", mask)
    elif kind == "frozen parameter":
        net.mask = torch.nn.Parameter(mask, requires_grad=False)
    else:
        net.least = MinMetric()
        net.least.persistent(True)
    fit(net, [FiniteGuard(), ModelCheckpoint(tmp_path, "last")], tmp_path, enable_checkpointing=None)
    assert saved(tmp_path / "last.ckpt") == 8


# What is refused.


class Manual(Frail):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Splitting(SingleDeviceStrategy):
    pass


def test_what_cannot_be_guarded_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MisconfigurationException, match=r"^FiniteGuard needs automatic optimization, but Manual"):
        fit(Manual(), [FiniteGuard()], tmp_path)
    net = make()
    net.configure_optimizers = lambda: torch.optim.LBFGS(net.parameters())
    with pytest.raises(MisconfigurationException, match=r"^FiniteGuard cannot work with LBFGS"):
        fit(net, [FiniteGuard()], tmp_path)
    monkeypatch.setattr(_gradients, "DeepSpeedStrategy", Splitting)
    with pytest.raises(MisconfigurationException, match=r"^FiniteGuard cannot work under Splitting: .* DDP"):
        fit(make(), [FiniteGuard()], tmp_path, strategy=Splitting("cpu"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"patience": 0}, "patience is 0; it must be an integer of at least 1"),
        ({"action": "accept"}, "action is 'accept'"),
        ({"lr_factor": 1.0}, "lr_factor is 1.0"),
        ({"rewind_every": 0}, "rewind_every is 0"),
        ({"max_total": 0}, "max_total is 0"),
    ],
)
def test_values_that_are_not_allowed(setting, message):
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        FiniteGuard(**setting)


def test_nothing_is_left_at_the_trainer(tmp_path):
    made = fit(make(), [Poison(1), FiniteGuard(), AutoClip()], tmp_path)
    assert "optimizer_step" not in vars(made.precision_plugin)
    net, guard = make(), FiniteGuard(patience=1)
    broken = trainer(tmp_path, callbacks=[Poison(1), guard])
    with pytest.raises(DivergenceError):
        broken.fit(net, loaders(DATA, 8))
    assert "optimizer_step" not in vars(broken.precision_plugin)
    assert guard._gate is None


def test_a_second_fit_begins_anew(tmp_path):
    guard = FiniteGuard()
    fit(make(), [Poison(1), guard], tmp_path)
    assert guard.state_dict()["total"] == 1
    fit(make(), [guard], tmp_path)
    assert guard.state_dict()["total"] == 0
