import re

import pytest
from torch.utils.data import ConcatDataset

from lightning_tuning.cli.tuning_cli import main
from tests.cli.toy import ToyData, ToyModel
from tests.resume.users_own import KeptPlace


class Kept(ToyData):
    """In loaders that go on within an epoch."""

    def train_dataloader(self):
        return KeptPlace(super().train_dataloader().dataset, self.batch_size)


class Many(Kept):
    """Batches enough for any window."""

    def train_dataloader(self):
        return KeptPlace(ConcatDataset([super().train_dataloader().dataset] * 5), self.batch_size)


class Counting(ToyModel):
    """Its loss depends on a counter that is no buffer."""

    calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return super().training_step(batch, batch_idx) * self.calls


@pytest.fixture
def check(config, capsys):
    def check(*args, code=0):
        assert main(["check-resume", "-c", config, *args]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return check


def test_a_certificate(check, tmp_path):
    out, err = check("--check.moments=[mid-epoch,epoch end,SIGTERM]", "--data=tests.cli.test_check_resume.Kept")
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert rows[:4] == [
        ["moment", "resumed at", "result"],
        ["mid-epoch", "step 5", "equal"],
        ["epoch end", "step 6", "equal"],
        ["SIGTERM", "step 5", "equal"],
    ]
    assert rows[4:] == [["Every resumed run equals the uninterrupted one of 9 steps bit for bit."]]
    assert err == ""
    assert {path.name for path in tmp_path.iterdir()} == {"recipes"}  # no run's folder


@pytest.mark.parametrize("size", [16, 40])
def test_the_global_batch_is_that_of_the_run(size, check):
    """Batches of 8: two, or five, are accumulated; an epoch then has batches enough for two and a half windows."""
    out, _ = check("--check.moments=[mid-epoch]", f"--run.global_batch_size={size}", f"--data={__name__}.Many")
    window = size // 8
    steps = -(-max(4, 2 * window + window // 2) // window)
    assert out.splitlines()[-1] == f"Every resumed run equals the uninterrupted one of {3 * steps} steps bit for bit."
    assert re.search(rf"^mid-epoch +step {steps + -(-steps // 2)} +equal$", out, re.M)


def test_a_difference_ends_with_code_1(check):
    out, _ = check("--check.moments=[epoch end]", "--model=tests.cli.test_check_resume.Counting", code=1)
    assert re.search(
        r"^epoch end +step 6 +differs: weights: layer\.weight, before batch 1 of epoch 2 \(step 7\)", out, re.M
    )
    assert "Not restored: module.calls (6; resumed: nothing).\n" in out


def test_bad_arguments(check):
    _, err = check("--check.moments=[midepoch]", code=2)
    assert "did you mean 'mid-epoch'" in err
    _, err = check("--check.batches=1", code=2)
    assert "check.batches is 1; it must be an integer of at least 2" in err
    _, err = check("--trainer.barebones=true", code=2)
    assert "saves nothing to resume from" in err
