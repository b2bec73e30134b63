"""What a user's own run is told: that it resumes exactly, or the first thing that differs, and why."""

from __future__ import annotations

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from lightning_tuning import ExactResume, SaveOnSignal, assert_resumes_exactly, check_resume
from lightning_tuning.errors import InvalidValueError, ResumeError
from lightning_tuning.resume import MOMENTS

from .users_own import (
    Counting,
    Draws,
    Forgetting,
    KeptPlace,
    Late,
    Net,
    NoisyPoints,
    Patience,
    Points,
    Summing,
    Unseeded,
    data,
)

EXACT = (ExactResume, SaveOnSignal)


def check(module=Net, moments=("mid-epoch",), callbacks=EXACT, loader=KeptPlace, dataset=Points, **kwargs):
    kwargs = {"accelerator": "cpu", "callbacks": [callback() for callback in callbacks], **kwargs}
    return check_resume(module, lambda: data(loader, dataset), kwargs, moments)


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "val_check_interval": 2}], ids=["", "windows"])
def test_a_right_module_is_certified(settings):
    report = assert_resumes_exactly(
        Net, data, {"accelerator": "cpu", "callbacks": [ExactResume(), SaveOnSignal()], **settings}
    )
    assert [result.moment for result in report.results] == list(MOMENTS)
    middle, end, whole = (3, 4, 6) if settings else (6, 8, 12)
    if settings:  # batches 0..4 in windows of 2, 2 and 1 are cut to the 4 there are
        assert report.steps == whole
    assert [result.step for result in report.results] == [middle, end, end, end, middle, middle]
    assert str(report).endswith(f"Every resumed run equals the uninterrupted one of {whole} steps bit for bit.")


DEFECTS = {
    "no ExactResume": (
        {"callbacks": (SaveOnSignal,)},
        "random numbers: torch",
        "before batch 2 of epoch 1 (step 6)",
        "there is no ExactResume()",
    ),
    "a loader without state": (
        {"loader": DataLoader},
        "data: batch",
        "before batch 2 of epoch 1 (step 6)",
        "the loader (DataLoader) has no state_dict and load_state_dict",
    ),
    "a transform with its own generator": (
        {"dataset": NoisyPoints, "moments": ("epoch end",)},
        "data: batch",
        "before batch 0 of epoch 2 (step 8)",
        "Not restored: dataset.noise (",
    ),
    "a counter in Python": (
        {"module": Counting},
        "weights: net.0.weight",
        "before batch 3 of epoch 1 (step 7)",
        "Not restored: module.calls (6; resumed: 0)",
    ),
    "a buffer that is not saved": (
        {"module": Forgetting, "moments": ("epoch end",)},
        "buffers: mean",
        "before batch 0 of epoch 2 (step 8)",
        "a buffer with persistent=False",
    ),
    "a metric in a list": (
        {"module": Summing},
        "logged: train/sum",
        "logged at step 7",
        "a metric that is gathered outside",
    ),
    "weights changed behind the checkpoint": (
        {"module": Late},
        "weights: net.0.weight",
        "before batch 2 of epoch 1 (step 6)",
        "in the module's on_train_batch_end",
    ),
    "a callback that draws": (
        {"callbacks": (*EXACT, Draws)},
        "random numbers: torch",
        "before batch 2 of epoch 1 (step 6)",
        "Put ExactResume behind it",
    ),
    "a callback that does not load": (
        {"callbacks": (*EXACT, Patience)},
        "callback Patience: count",
        "before batch 2 of epoch 1 (step 6)",
        "load_state_dict does not put it back",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_first_difference_and_its_cause_are_named(defect):
    settings, key, place, cause = DEFECTS[defect]
    report = check(**settings)
    (result,) = report.results
    assert not report.ok
    assert (result.difference.key, result.difference.place) == (key, place)
    assert cause in result.difference.cause
    assert f"differs: {key}, {place}: " in str(report)
    assert f"Usual cause: {result.difference.cause}" in str(report)


def test_the_largest_difference_is_that_of_the_weights():
    (result,) = check(Late).results
    # They were shrunk behind the checkpoint, to 0.9 of what it holds: the difference is a tenth of the largest weight.
    torch.manual_seed(0)
    assert 0.01 < result.difference.largest < 0.1
    assert f"largest difference {result.difference.largest:.3g}." in str(result)


def test_a_run_that_is_never_the_same_is_told_apart():
    (result,) = check(Unseeded, moments=("SIGTERM",)).results
    assert result.difference.cause.startswith("two runs from the start, of the same seed, differ already.")


def test_without_a_checkpoint_on_sigterm():
    (result,) = check(callbacks=(ExactResume,), moments=("SIGTERM",)).results
    assert result.problem == "no checkpoint was written. Add SaveOnSignal() to the callbacks."
    assert not result.ok


def test_moments_that_a_run_does_not_have():
    report = check(moments=("validation end", "epoch end"), limit_val_batches=0)
    assert [result.unreached for result in report.results] == ["there is no validation.", None]
    assert report.ok
    report = check(moments=("mid-epoch", "max_steps"), accumulate_grad_batches=9)
    assert {result.unreached for result in report.results} == {"an epoch has no middle where an optimizer step ends."}
    assert not report.ok
    assert str(report).endswith("Nothing was compared.")


def test_the_error_is_the_report():
    with pytest.raises(ResumeError, match=r"^moment +resumed at +result\nmid-epoch +step 6 +differs: ") as caught:
        assert_resumes_exactly(Counting, data, {"accelerator": "cpu", "callbacks": [ExactResume()]}, ["mid-epoch"])
    assert isinstance(caught.value, AssertionError)


def test_random_generators_are_left_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check()
    assert torch.rand(1) == expected


def test_bad_arguments():
    with pytest.raises(InvalidValueError, match=r"moments is 'mid_epoch'; did you mean 'mid-epoch'\?"):
        check(moments=["mid_epoch"])
    with pytest.raises(InvalidValueError, match="batches is 1; it must be an integer of at least 2"):
        check_resume(Net, data, batches=1)


class Measuring(Net):
    """Logs torchmetrics objects, in training and in validation."""

    def __init__(self, persistent: bool = False) -> None:
        super().__init__()
        self.train_mean, self.val_mean = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        for metric in (self.train_mean, self.val_mean):
            metric.persistent(persistent)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.train_mean(loss.detach())
        self.log("train/mean", self.train_mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.val_mean(self.net(batch[0]).mean())
        self.log("val/mean", self.val_mean)


@pytest.mark.parametrize(
    ("persistent", "settings"),
    [(False, {}), (True, {}), pytest.param(True, {"devices": 2, "strategy": "ddp_fork"}, marks=pytest.mark.slow)],
    ids=["", "persistent", "two ranks"],
)
def test_metric_objects_that_are_logged_go_on(persistent, settings):
    """Lightning resets them behind the moments at which checkpoints are written; each rank has sums of its own."""
    report = check(lambda: Measuring(persistent), MOMENTS, **settings)
    assert report.ok, report


def test_accumulation_by_epochs():
    """Lightning sets it in the part of an epoch alone that begins it: the rest would have single batches."""
    settings = {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2}), ExactResume(), SaveOnSignal()]}
    report = check_resume(Net, data, {"accelerator": "cpu", **settings}, ["mid-epoch", "SIGTERM"])
    assert report.ok, report
    assert report.steps == 4 + 2 + 2


def test_an_interval_longer_than_its_epochs():
    report = check(moments=["validation end"], val_check_interval=500)
    assert report.ok, report
