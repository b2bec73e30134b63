import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_tuning import DigitsDataModule
from lightning_tuning.data.loader import KeyedLoader
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.timing.durations import Duration, check_duration, duration_of, parse_duration
from tests.mixins.tiny import Tiny, batches, fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5ep", (5.0, "ep")),
        ("0.5 epochs", (0.5, "ep")),
        ("1 epoch", (1.0, "ep")),
        ("500st", (500.0, "st")),
        (" 2000 steps ", (2000.0, "st")),
        ("0.1dur", (0.1, "dur")),
        ("10%", (0.1, "dur")),
        ("1dur", (1.0, "dur")),
        ("1e6smp", (1e6, "smp")),
        ("1.5e+3 samples", (1500.0, "smp")),
        ("0st", (0.0, "st")),
    ],
)
def test_what_is_a_duration(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["1.1dur", "101%", "2 dur"])
def test_more_than_the_run(text):
    assert parse_duration(text) is None
    with pytest.raises(InvalidValueError, match=f"patience is '{text}'; the whole run is '1dur' or '100%'"):
        check_duration("patience", text)


@pytest.mark.parametrize("text", ["", "5", "ep", "-1ep", "1..2st", "5 weeks", "5ep 3st", 5, None])
def test_what_is_none(text):
    assert parse_duration(text) is None
    with pytest.raises(InvalidValueError, match=r"patience is .*; write a number and its unit: '5ep' \(epochs\)"):
        check_duration("patience", text)


def test_nothing_is_too_short_unless_allowed():
    with pytest.raises(InvalidValueError, match="write a number above 0 and its unit"):
        check_duration("patience", "0ep")
    assert check_duration("start", "0ep", positive=False) == "0ep"


class Length(Callback):
    def __init__(self, text):
        self.duration = duration_of(text)

    def on_train_start(self, trainer, pl_module):
        self.steps = self.duration.steps(trainer)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("7st", {}, 7),
        ("1.5ep", {}, 12),
        ("0.25dur", {"max_epochs": 3}, 6),
        ("0.25dur", {"max_epochs": 3, "max_steps": 8}, 2),
        ("0.28dur", {"max_epochs": 4, "max_steps": 25}, 7),  # above it in floating point
        ("1.5ep", {"accumulate_grad_batches": 3}, 4.5),  # three windows an epoch, the last one shorter
        ("2ep", {"max_epochs": 3, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 4})]}, 10),
        ("64smp", {}, 16),  # batches of 4
        ("48smp", {"accumulate_grad_batches": 4}, 3),
        ("64smp", {"max_epochs": 3, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 4})]}, 10),
    ],
)
def test_how_many_steps_it_is(text, settings, expected):
    length = Length(text)
    settings = {"max_epochs": 1, **settings}
    data = [sample for x, y in batches(8) for sample in zip(x[:4], y[:4], strict=True)]
    made = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **{**settings, "callbacks": [*settings.get("callbacks", []), length]},
    )
    made.fit(Tiny(), DataLoader(data, batch_size=4))
    assert length.steps == expected


def test_samples_of_loaders_without_a_size_are_refused():
    with pytest.raises(MisconfigurationException, match=r"The duration 64smp needs .* as in 500st"):
        fit(Tiny(), batches(8), callbacks=[Length("64smp")])


def test_samples_of_a_datamodule_are_the_labelled_ones():
    data = DigitsDataModule(num_labels=40, batch_size=8, unlabeled_batch_size=24, steps_per_epoch=5)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, KeyedLoader)
    assert loader.sampler.batch_size == 8


def test_text():
    assert [str(Duration(*d)) for d in ((0.4, "dur"), (2000.0, "st"))] == ["0.4dur", "2000st"]
