import math

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning import ICTMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import ramp_factor
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.ramps import check_ramp
from tests.mixins.tiny import Tiny, batches, fit


class RampedMixin(TuningMixin):
    stem = "ramped_term"
    off = {"ramped_term_weight": 0.0}

    def __init__(self, *args, ramped_term_weight: float = 2.0, ramped_term_ramp: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.ramped_term_weight, self.ramp, self.weights = ramped_term_weight, ramped_term_ramp, []

    def training_step(self, batch, batch_idx):
        self.weights.append(self.ramped(self.ramped_term_weight, self.ramp))
        return super().training_step(batch, batch_idx)


class Net(RampedMixin, Tiny):
    pass


def weights(ramp, count=8, **kwargs):
    net = Net(ramped_term_ramp=ramp)
    trainer = fit(net, batches(count), **kwargs)
    return net.weights, trainer


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0, 1.7])
def test_shapes(t):
    u = min(t, 1.0)
    assert ramp_factor("linear", t) == u
    assert ramp_factor("sigmoid", t) == pytest.approx(math.exp(-5 * (1 - u) * (1 - u)), rel=1e-12)
    assert ramp_factor("cosine", t) == pytest.approx(math.sin(math.pi * u / 2) ** 2, abs=1e-12)


def test_in_steps():
    assert weights("linear 4 steps")[0] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_a_share_of_the_run():
    assert weights("linear 50%", max_epochs=2)[0] == pytest.approx([2 * min(k / 8, 1) for k in range(16)])


def test_a_share_of_max_steps():
    assert weights("linear 100%", max_steps=5, max_epochs=-1)[0] == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6])


def test_in_epochs_under_accumulation():
    """2 steps an epoch: the ramp of 1.5 epochs is 3 steps long, the same for all batches of a window."""
    found, trainer = weights("linear 1.5 epochs", max_epochs=2, accumulate_grad_batches=4)
    assert trainer.global_step == 4
    assert found == pytest.approx([2 * k / 3 for k in (0, 1, 2, 3) for _ in range(4)])


def test_with_a_changing_accumulation():
    scheduler = GradientAccumulationScheduler({0: 1, 1: 4})
    found, _ = weights("linear 2 epochs", max_epochs=2, callbacks=[scheduler])
    assert found[:8] == pytest.approx([2 * k / 10 for k in range(8)])
    assert found[8:] == pytest.approx([1.6] * 4 + [1.8] * 4)


def test_a_second_fit_of_another_length_has_its_own_ramp():
    net = Net(ramped_term_ramp="linear 100%")
    fit(net, batches(4))
    net.weights.clear()
    fit(net, batches(2))
    assert net.weights == [0.0, 1.0]


def test_no_ramp_and_no_trainer_give_the_full_weight():
    assert weights(None, 2)[0] == [2.0, 2.0]
    assert Net().ramped(3.0, "linear 10 steps") == 3.0


def test_an_open_run_has_no_share():
    with pytest.raises(MisconfigurationException, match=r"The duration 0.4dur needs the run's length.*in steps"):
        weights("sigmoid 40%", max_epochs=-1, max_steps=-1, limit_train_batches=4, max_time={"seconds": 5})


@pytest.mark.parametrize(
    "text", ["sigmoid", "sigmoid 40", "40%", "linear -1 steps", "linear 0%", "linear 140%", "cubic 3 epochs", "", 3]
)
def test_what_is_no_ramp(text):
    with pytest.raises(InvalidValueError, match=r"x_ramp is .*; write null for none, or a shape"):
        check_ramp("x_ramp", text)


def test_the_factor_is_logged():
    class Linear(ICTMixin, Tiny):
        pass

    net, seen = Linear(ict_ramp="linear 4 steps"), []

    class Keep(DummyLogger):
        def log_metrics(self, metrics, step):
            seen.extend(value for name, value in metrics.items() if name == "train/ict_ramp")

    fit(net, batches(6), logger=Keep(), log_every_n_steps=1)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
