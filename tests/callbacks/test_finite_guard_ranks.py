"""FiniteGuard where one of two ranks gets a bad batch of the package's loaders: which samples it names."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_tuning import DigitsDataModule, FiniteGuard
from tests.contract.nets import assert_equal_state, trainer
from tests.contract.test_contract_ddp import SaveRank

from .poison import Frail, Poison, all_finite, lines


class Digits(Frail):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["labeled"], batch_idx)


class Keep(pl.Callback):
    """Keeps each rank's batches, and its weights before each."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        kept = {"labeled": batch["labeled"][0].clone(), "unlabeled": batch["unlabeled"]["index"].clone()}
        torch.save({**kept, "weight": pl_module.net[1].weight}, self.folder / f"{trainer.global_rank}-{batch_idx}.pt")


@pytest.mark.filterwarnings("ignore:Step 1, epoch 0. FiniteGuard")
@pytest.mark.parametrize("rank", [0, 1])
def test_both_ranks_skip_and_the_samples_of_one_are_named(rank, tmp_path):
    data = DigitsDataModule(batch_size=4, unlabeled_batch_size=6, num_labels=50, augment="none", steps_per_epoch=6)
    data.setup("fit")
    torch.manual_seed(0)
    callbacks = [Keep(tmp_path), Poison(1, rank=rank), FiniteGuard(), SaveRank(tmp_path)]
    made = trainer(tmp_path, callbacks=callbacks, max_epochs=1, strategy="ddp_fork", devices=2)
    net = Digits()
    made.fit(net, data)
    batches = {(r, b): torch.load(tmp_path / f"{r}-{b}.pt", weights_only=True) for r in (0, 1) for b in (0, 1, 2, 3)}
    (line,) = lines(tmp_path)
    assert (line["rank"], line["batch"], line["step"]) == (rank, 1, 1)

    # The samples are positions among all that the data module loaded.
    bad, good = (data.unlabeled_indices[batches[r, 1]["unlabeled"]].tolist() for r in (rank, 1 - rank))
    assert line["samples"]["unlabeled"] == bad
    assert not set(bad) & set(good)
    images = torch.from_numpy(data.load()[0][line["samples"]["labeled"]]).permute(0, 3, 1, 2)
    seen = batches[rank, 1]["labeled"]
    for image, x in zip(images.float(), seen, strict=True):  # equal but for the normalisation
        assert torch.corrcoef(torch.stack([image.flatten(), x.flatten()]))[0, 1] > 0.99999

    # Both skip: the weights of batch 2 are those of batch 1, and the ranks end equal.
    for r in (0, 1):
        assert not torch.equal(batches[r, 0]["weight"], batches[r, 1]["weight"])
        assert torch.equal(batches[r, 1]["weight"], batches[r, 2]["weight"])
        assert not torch.equal(batches[r, 2]["weight"], batches[r, 3]["weight"])
    ends = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    assert_equal_state(*ends)
    assert_equal_state(ends[0], dict(net.state_dict()))
    assert all_finite(net)
