"""MicroBatch on two processes, of which one alone may run out of memory."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing import ProcessRaisedException

from lightning_tuning.callbacks import FiniteGuard, MicroBatch
from lightning_tuning.callbacks._window_gradients import average_over_ranks
from lightning_tuning.errors import TuningError
from tests.contract.nets import assert_equal_state
from tests.contract.test_callbacks import SmallScale
from tests.contract.test_contract import Overflow, assert_close
from tests.contract.test_contract_ddp import SaveRank

from .small_memory import Net, data, fit, no_collection  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:Step .*MicroBatch")
SLOW = pytest.mark.slow


class Logs(Net):
    """Logs over the ranks within its step, and has a parameter of which one rank alone has a gradient."""

    def __init__(self, **memory):
        super().__init__(**memory)
        self.some = torch.nn.Parameter(torch.ones(1))
        self.never = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            loss = loss + 0.5 * self.some.sum()
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss


def on_two(net, tmp_path, *callbacks, strategy="ddp_fork_find_unused_parameters_true", loader=None, **kwargs):
    ranks = {"strategy": strategy, "devices": 2, "precision": "64-true", **kwargs}
    loader = loader or data(24, 4, next(net.parameters()).dtype)
    made = fit(net, tmp_path, *callbacks, SaveRank(tmp_path), loader=loader, **ranks)
    return made, [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def without_counts(state):
    return {name: value for name, value in state.items() if name != "passed"}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_where_everything_fits_two_ranks_are_bitwise_two_ranks_without_it(accumulate, tmp_path):
    states, metrics = [], []
    for callbacks in ([], [MicroBatch()]):
        made, ranks = on_two(Logs().double(), tmp_path, *callbacks, accumulate_grad_batches=accumulate)
        states.append(ranks)
        metrics.append({name: value.item() for name, value in made.callback_metrics.items()})
    for rank in (0, 1):
        assert_equal_state(states[0][rank], states[1][rank])
    assert metrics[0] == metrics[1]
    assert states[0][0]["some"] != 1
    assert states[0][0]["never"] == 1


@pytest.mark.parametrize(
    ("where", "accumulate"),
    [("backward", 3), *(pytest.param(*row, marks=SLOW) for row in [("forward", 3), ("forward", 1), ("backward", 1)])],
)
def test_one_rank_that_fails_lets_no_other_wait_and_both_end_as_with_all_memory(where, accumulate, tmp_path):
    _, (wanted, _) = on_two(Logs().double(), tmp_path, accumulate_grad_batches=accumulate)
    net, callback = Logs(limit=1, where=where, rank=1).double(), MicroBatch()
    _, (rank0, rank1) = on_two(net, tmp_path, callback, strategy="ddp_fork", accumulate_grad_batches=accumulate)
    assert_equal_state(without_counts(rank0), without_counts(rank1))
    assert rank0["passed"] == rank1["passed"] == 6 * 4  # the other rank passes its batches in four parts too
    assert_close(without_counts(rank0), without_counts(wanted), 1e-12)


def test_a_last_batch_that_is_smaller_on_one_rank(tmp_path):
    """12 samples and 11, in batches of 4: the mean over the ranks is DDP's, of each rank's own mean."""
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    _, (wanted, _) = on_two(Logs().double(), tmp_path, loader=data(23, 4), **settings)
    net = Logs(limit=1, rank=1, where="backward").double()
    _, ranks = on_two(net, tmp_path, MicroBatch(), strategy="ddp_fork", loader=data(23, 4), **settings)
    for rank in ranks:
        assert_close(without_counts(rank), without_counts(wanted), 1e-12)


class Broken(pl.Callback):
    """A NaN in the second batch of rank 1."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (batch_idx, trainer.global_rank) == (1, 1):
            batch[0][-1] = float("nan")


@pytest.mark.filterwarnings("ignore:Step .*FiniteGuard")
@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=SLOW)])
def test_a_nan_on_the_rank_that_has_too_little_memory(accumulate, tmp_path):
    ends = []
    for limit, callbacks in ((99, []), (1, [MicroBatch()])):
        net, settings = Net(limit=limit, rank=1).double(), {"accumulate_grad_batches": accumulate, "max_epochs": 2}
        _, ranks = on_two(net, tmp_path, *callbacks, Broken(), FiniteGuard(), strategy="ddp_fork", **settings)
        assert_equal_state(*map(without_counts, ranks))
        ends.append(without_counts(ranks[0]))
    assert_close(*ends, 1e-12)
    moved = [not torch.equal(value, ends[0][name]) for name, value in Net().double().named_parameters()]
    assert all(moved) is (accumulate == 1)  # with three to a step, the NaN is in every one


@SLOW
def test_one_rank_that_fails_under_fp16_and_a_step_that_its_scaler_skips(tmp_path):
    ends = []
    for limit in (99, 1):
        net, overflow = Logs(limit=limit, where="backward", rank=1), Overflow(1)
        others = [overflow, SmallScale()]  # at the scaler's own start the whole batch overflows, and its parts do not
        _, (rank0, rank1) = on_two(net, tmp_path, MicroBatch(), *others, strategy="ddp_fork", precision="16-mixed")
        assert_equal_state(without_counts(rank0), without_counts(rank1))
        ends.append(torch.cat([value.flatten() for value in without_counts(rank0).values()]))
    start = torch.cat([value.flatten() for value in without_counts(Logs().state_dict()).values()])
    assert (ends[0] - ends[1]).norm() < 0.02 * (ends[0] - start).norm()


class Reasons(Logs):
    """Writes down why each rank ends, all of them before any is stopped."""

    def optimizer_step(self, *args, **kwargs):
        try:
            super().optimizer_step(*args, **kwargs)
        except TuningError as error:
            Path(self.trainer.default_root_dir, f"{self.global_rank}.txt").write_text(str(error))
            torch.distributed.barrier()
            raise


def test_where_nothing_fits_on_one_rank_all_end(tmp_path):
    with pytest.raises(ProcessRaisedException, match="DoesNotFitError"):
        on_two(Reasons(limit=0, rank=1).double(), tmp_path, MicroBatch())
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0].startswith("MicroBatch: a training step of another rank does not fit into memory")
    assert "The allocator said" not in texts[0]
    assert texts[1].startswith("MicroBatch: a training step does not fit into memory")
    assert texts[1].endswith("Tried to allocate 2.00 GiB.")


def test_a_batch_that_cannot_be_divided_on_one_rank_ends_all(tmp_path):
    def collate(samples):
        x, y = map(torch.stack, zip(*samples, strict=True))
        return x, y, torch.zeros(3)

    class Mixed(Reasons):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    loader = data(24, 4)
    loader.collate_fn = collate
    with pytest.raises(ProcessRaisedException):
        on_two(Mixed(limit=2, rank=1).double(), tmp_path, MicroBatch(), loader=loader)
    assert "does not fit into memory" in (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text().startswith("MicroBatch cannot split the batch: batch[0] has 4 rows")


def test_gradients_are_averaged_bucket_by_bucket(monkeypatch, tmp_path):
    """The mean is taken of whatever is reduced at once."""
    monkeypatch.setattr("lightning_tuning.callbacks._window_gradients._BUCKET", 40)
    _, (rank0, _) = on_two(Logs().double(), tmp_path, MicroBatch())
    monkeypatch.undo()
    _, (wanted, _) = on_two(Logs().double(), tmp_path, MicroBatch())
    assert_equal_state(rank0, wanted)


def test_no_parameters_need_no_ranks():
    average_over_ranks([])


@pytest.mark.parametrize("where", ["forward", pytest.param("backward", marks=SLOW)])
def test_a_broadcast_of_buffers_happens_when_ddp_makes_it(where, tmp_path):
    """Rank 0's buffer goes to rank 1 in the first forward pass behind a step, also when it is repeated."""

    class Buffers(Net):
        def on_train_batch_start(self, batch, batch_idx):
            self.passed.fill_(10 * (1 + self.global_rank))

    states = []
    for limit in (99, 1):
        net = Buffers(limit=limit, where=where, rank=1).double()
        states.append(on_two(net, tmp_path, MicroBatch(), strategy="ddp_fork", accumulate_grad_batches=2)[1])
    stock = on_two(Buffers().double(), tmp_path, strategy="ddp_fork", accumulate_grad_batches=2)[1]
    assert_equal_state(*[{str(r): s["passed"] for r, s in enumerate(ranks)} for ranks in (states[0], stock)])
    # The last batch stands alone in its window, so it broadcasts: one pass of the whole, four parts.
    assert [s["passed"].item() for s in states[1]] == [v["passed"].item() + 3 for v in stock]


def test_ddp_itself_is_a_strategy_that_it_takes(tmp_path):
    net = Net(limit=2).double()
    _, (rank0, rank1) = on_two(net, tmp_path, MicroBatch(), strategy=DDPStrategy(start_method="fork", bucket_cap_mb=1))
    assert_equal_state(rank0, rank1)
