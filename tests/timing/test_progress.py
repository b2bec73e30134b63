import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning.timing.progress import progress, total_steps
from tests.mixins.tiny import Tiny, batches, fit


class Lengths(Callback):
    def on_train_start(self, trainer, pl_module):
        self.total = total_steps(trainer)
        self.shares = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.shares.append(progress(trainer, self.total))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_epochs": 2}, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, [0, 0, 1 / 3, 1 / 3, 2 / 3]),
        ({"max_epochs": 9, "max_steps": 4}, [0, 0.25, 0.5, 0.75]),
        (
            {"max_epochs": 2, "callbacks": [GradientAccumulationScheduler({1: 5})]},
            [*(i / 6 for i in range(6)), *[5 / 6] * 4],
        ),
    ],
)
def test_the_share_of_the_run_that_is_over(settings, expected):
    lengths = Lengths()
    fit(Tiny(), batches(5), **{**settings, "callbacks": [*settings.get("callbacks", []), lengths]})
    assert lengths.shares == pytest.approx(expected)


def test_a_run_without_a_length():
    with pytest.raises(MisconfigurationException, match=r"or write --model\.dropout_schedule=constant"):
        total_steps(Trainer(max_epochs=-1, logger=False), instead="--model.dropout_schedule=constant")
