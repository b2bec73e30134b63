"""What is written on the command line wins over the checkpoint, or is refused."""

import pytest
import torch
import yaml

from lightning_tuning.runs import read_journal
from tests.cli.toy import ToyModel

SHORT = ("--trainer.max_epochs=1", "--run.test=false")
RESUMED = ("--trainer.max_epochs=2", "--run.test=false", "--ckpt_path=last")


class Scheduled(ToyModel):
    """Its rate falls in each epoch; its weight decay is an argument too."""

    def __init__(self, lr: float = 0.1, decay: float = 0.0):
        super().__init__(lr)
        self.decay = decay

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, weight_decay=self.decay)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


SCHEDULED = "--model=tests.cli.test_changed_arguments.Scheduled"


def rates(folder):
    return [r["lr-SGD"] for r in read_journal(folder / "metrics.jsonl") if "lr-SGD" in r]


def test_a_new_learning_rate_is_used(run):
    run("fit", "--model.lr=0.3", *SHORT)
    assert rates(run("fit", *RESUMED)) == [0.3] * 3
    assert rates(run("fit", *RESUMED, "--model.lr=0.2", "--trainer.max_epochs=3")) == [0.2] * 3


def test_under_a_schedule_it_is_refused_and_without_it_goes_on(run, capsys):
    run("fit", SCHEDULED, *SHORT)
    run("fit", SCHEDULED, *RESUMED, "--model.lr=0.4", code=2)
    message = "model.lr is 0.4, but the checkpoint's schedule is under way with 0.1. Leave the argument out to go on,"
    assert f"lightning-tuning: {message} or start a new run.\n" in capsys.readouterr().err
    assert rates(run("fit", SCHEDULED, *RESUMED)) == [0.05] * 3


def test_what_the_schedule_does_not_set_wins(run):
    run("fit", SCHEDULED, "--model.decay=0.5", *SHORT)
    folder = run("fit", SCHEDULED, *RESUMED, "--model.decay=0.25")
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert [group["weight_decay"] for group in saved["optimizer_states"][0]["param_groups"]] == [0.25]
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"] == {"decay": 0.25, "lr": 0.1}


@pytest.mark.parametrize("seed", [0, 7])
def test_another_seed_is_refused(seed, run, capsys):
    run("fit", "--seed_everything=3", *SHORT)
    assert run("fit", *RESUMED, f"--seed_everything={seed}", code=2) is None
    expected = (
        f"seed_everything is {seed}, but the run goes on with the checkpoint's seed 3. Write --seed_everything=3 "
    )
    assert expected in capsys.readouterr().err
    run("fit", *RESUMED)
    run("test", "--ckpt_path=last", f"--seed_everything={seed}")
