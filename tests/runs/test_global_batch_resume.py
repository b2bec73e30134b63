"""GlobalBatch of a run that goes on from a checkpoint."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tuning.callbacks import ExactResume
from lightning_tuning.runs import GlobalBatch
from tests.runs.test_global_batch import digits, train

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")


class SaveAfter(Callback):
    """Writes a checkpoint behind a batch."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("batch", "warns"), [(3, True), (7, False), (9, True)])
def test_a_resume_within_an_epoch_with_other_ranks_warns(batch, warns, tmp_path):
    """The position of an epoch is a number of batches of each rank."""
    data, path = {"data": digits(num_labels=64), "max_steps": -1}, tmp_path / "a.ckpt"
    train(tmp_path, GlobalBatch(16), SaveAfter(path, batch), max_epochs=2, **data)
    checkpoint = torch.load(path, weights_only=True)
    behind = (batch + 1) % 8
    assert checkpoint["global_batch"] == {"size": 16, "ranks": 1, "batches": behind}
    for ranks in (1, 2, 4):
        checkpoint["global_batch"]["ranks"] = ranks
        torch.save(checkpoint, path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(tmp_path, GlobalBatch(16), max_epochs=2, ckpt_path=path, **data)
        texts = [str(w.message) for w in caught if str(w.message).startswith("The checkpoint was written within")]
        assert texts == [
            f"The checkpoint was written within an epoch, behind {behind} batches of {ranks} ranks, and this run goes "
            f"on behind {behind} batches of 1 rank, so the epoch repeats samples. Resume with as many ranks as before, "
            "or from a checkpoint of an epoch's end."
        ] * (warns and ranks > 1)


def test_a_resume_with_another_global_batch_warns(tmp_path):
    trainer, _ = train(tmp_path, GlobalBatch(16))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(
        UserWarning, match=r"^The checkpoint's run had a global batch of 16, this one has 8, at the same"
    ):
        train(tmp_path, GlobalBatch(), ckpt_path=tmp_path / "a.ckpt", max_steps=6)


@pytest.mark.filterwarnings("error:The checkpoint's run had")
def test_a_resume_with_the_same_global_batch_does_not(tmp_path):
    trainer, _ = train(tmp_path, GlobalBatch(16))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed, _ = train(tmp_path, GlobalBatch(), data=digits(batch_size=16), ckpt_path=tmp_path / "a.ckpt", max_steps=6)
    assert resumed.global_step == 6


def test_at_an_epochs_end_the_number_of_ranks_may_change(tmp_path):
    """One rank that accumulates, then two, or the other way round: the run is that of one rank."""
    data, runs = {"data": digits(num_labels=64), "max_steps": -1}, []
    for ranks in ((1, 1), (1, 2), (2, 1)):
        folder = tmp_path / "{}{}".format(*ranks)
        for epochs, devices in enumerate(ranks, start=1):
            path = folder / "1" / "a.ckpt" if epochs == 2 else None
            two = {"devices": 2, "strategy": "ddp_fork"} if devices == 2 else {}
            save = SaveAtEnd(folder / str(epochs) / "a.ckpt")
            train(tmp_path, GlobalBatch(16), ExactResume(1), save, max_epochs=epochs, ckpt_path=path, **data, **two)
        runs.append(torch.load(folder / "2" / "a.ckpt", weights_only=True))
    assert [run["global_step"] for run in runs] == [8, 8, 8]
    for run in runs[1:]:
        for name, value in run["state_dict"].items():
            torch.testing.assert_close(value, runs[0]["state_dict"][name], rtol=1e-5, atol=1e-6)


class SaveAtEnd(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)
