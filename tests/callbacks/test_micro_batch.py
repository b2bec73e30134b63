"""MicroBatch on one process: what it makes of a batch that does not fit is what the whole batch would have made."""

from __future__ import annotations

import csv
import random
import weakref

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_tuning.callbacks import FiniteGuard, MicroBatch
from lightning_tuning.callbacks._batch_tries import is_out_of_memory
from lightning_tuning.callbacks._before_batch import BeforeBatch
from lightning_tuning.errors import DoesNotFitError, InvalidValueError
from lightning_tuning.functional import TermWatch
from tests.contract.nets import assert_equal_state
from tests.contract.test_contract import Overflow, assert_close

from .small_memory import MESSAGES, Net, data, fit, no_collection, split  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:Step .*MicroBatch")
WHERE = pytest.mark.parametrize("where", ["forward", "backward"])


def weights(net):
    return {name: p.detach() for name, p in net.named_parameters()}


def whole(tmp_path, **kwargs):
    net = Net().double()
    fit(net, tmp_path, **{"precision": "64-true", **kwargs})
    return weights(net)


@WHERE
@pytest.mark.parametrize(("limit", "parts"), [(8, 1), (4, 2), (1, 8), (3, 4)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_at_each_size_of_memory_the_run_is_that_of_the_whole_batches(where, limit, parts, accumulate, tmp_path):
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.05}
    net, callback = split(tmp_path, limit, where, **settings)
    assert callback.state_dict() == {"parts": parts}
    assert_close(weights(net), whole(tmp_path, **settings), 1e-12)
    wanted = {1: [8] * 6, 2: [4] * 12, 4: [2] * 24, 8: [1] * 48}
    assert [n for n in net.memory.sizes if n <= limit][-len(wanted[parts]) :] == wanted[parts]
    failed = [n for n in net.memory.sizes if n > limit]
    assert failed == [n for n in (8, 4, 2) if n > limit]  # each size once: the number of parts is kept


@WHERE
def test_one_sample_that_does_not_fit_is_one_clear_error(where, tmp_path):
    with pytest.raises(DoesNotFitError, match=r"the batch in 8 parts, .* said: CUDA out of memory") as e:
        split(tmp_path, 0, where)
    assert "more" not in str(e.value)


@WHERE
def test_what_a_failed_try_has_computed_is_gone_when_it_is_repeated(where, tmp_path):
    class Watched(Net):
        last_one, alive = None, ()

        def forward(self, x):
            if self.last_one is not None:
                self.alive = (*self.alive, self.last_one() is not None)
            hidden = torch.tanh(self.first(x))
            self.last_one = weakref.ref(hidden)
            return self.last(self.memory(hidden))

    net = Watched(limit=2, where=where)
    fit(net, tmp_path, MicroBatch(), max_epochs=1)
    assert len(net.memory.sizes) == 2 + 12
    assert net.alive == (False,) * 13  # neither of a failed try nor of an earlier part


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_allocators_that_it_knows(kind, tmp_path):
    net, callback = Net(limit=4, kind=kind), MicroBatch()
    fit(net, tmp_path, callback, max_epochs=1)
    assert callback.state_dict() == {"parts": 2}


def test_other_errors_are_not_touched(tmp_path):
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))
    net = Net()
    net.last = nn.Linear(5, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(net, tmp_path, MicroBatch())
    assert len(net.memory.sizes) == 1


def test_uneven_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    """Seven samples in four parts, against the gradient of a linear model written out."""

    class Linear(Net):
        def forward(self, x):
            return self.last.weight @ self.memory(x).T

        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1].T).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    net = Linear(limit=3).double()
    net.last = nn.Linear(3, 2, bias=False).double()
    start = net.last.weight.detach().numpy().copy()
    loader = data(7, 7)
    fit(net, tmp_path, MicroBatch(), loader=loader, max_epochs=1, precision="64-true")
    assert net.memory.sizes == [7, 4, 2, 2, 2, 1]
    x, y = (t.numpy() for t in loader.dataset.tensors)
    gradient = 2 / 14 * (start @ x.T - y.T) @ x
    np.testing.assert_allclose(net.last.weight.detach().numpy(), start - gradient, rtol=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_where_everything_fits_the_run_is_bitwise_the_one_without_it(precision, accumulate, tmp_path):
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return {"loss": loss, "more": loss.detach() + 1}

    nets, rows, states = [Logs(dropout=0.3), Logs(dropout=0.3)], [], []
    for net, callbacks in zip(nets, [[], [MicroBatch()]], strict=True):
        torch.manual_seed(5)
        made = fit(
            net,
            tmp_path,
            *callbacks,
            *[Overflow(1)] * (precision == "16-mixed"),
            precision=precision,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=0.1,
            logger=CSVLogger(tmp_path, version=len(rows)),
            log_every_n_steps=1,
        )
        rows.append((tmp_path / f"lightning_logs/version_{len(rows)}/metrics.csv").read_text())
        states.append((torch.get_rng_state(), made.optimizers[0].state_dict()))
    assert_equal_state(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    assert rows[0] == rows[1]
    assert torch.equal(states[0][0], states[1][0])
    assert_equal_state(states[0][1], states[1][1])


@WHERE
def test_a_try_begins_with_the_same_random_numbers_and_buffers(where, tmp_path):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    net, _ = split(tmp_path, 2, where, max_epochs=1)
    # In parts of 8, 4 and 2; the first two fail with their first part.
    assert net.states[0] == net.states[1] == net.states[2]
    assert [len(set(drawn)) for drawn in zip(*net.states, strict=True)] == [12] * 3
    assert net.passed.item() == 12  # three batches of four parts: no failed try counts


@WHERE
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_earlier_batches_of_the_window_survive_a_failed_try(where, batch, tmp_path):
    """Bitwise the run that is told before that batch to split it."""

    class At(pl.Callback):
        def __init__(self, act):
            self.act = act

        def on_train_batch_start(self, trainer, pl_module, seen, batch_idx):
            if batch_idx == batch:
                self.act(pl_module)

    results = []
    for fails in (True, False):
        net, callback = Net().double(), MicroBatch()
        net.memory.where = where

        def act(module, callback=callback, fails=fails):
            if fails:
                module.memory.limit = 4
            else:
                callback._pass.parts = 2

        fit(net, tmp_path, callback, At(act), precision="64-true", accumulate_grad_batches=3)
        assert (net.memory.sizes[batch] == 8) is fails
        results.append(weights(net))
    assert_equal_state(*results)


class Hooks(Net):
    """Counts its hooks, and keeps the gradient that it sees."""

    def __init__(self, **memory):
        super().__init__(**memory)
        self.calls, self.norms = [], []

    def on_before_zero_grad(self, optimizer):
        self.calls.append("zero")

    def on_before_backward(self, loss):
        self.calls.append("before")

    def on_after_backward(self):
        self.calls.append("after")
        self.norms.append(self.last.weight.grad.norm().item())

    def on_before_optimizer_step(self, optimizer):
        self.calls.append("step")


@WHERE
def test_hooks_are_called_once_a_batch_and_see_the_whole_gradient(where, tmp_path):
    settings = {"precision": "64-true", "max_epochs": 1, "accumulate_grad_batches": 3}
    nets = [Hooks(limit=limit, where=where).double() for limit in (99, 2)]
    for net in nets:
        fit(net, tmp_path, MicroBatch(), **settings)
    assert nets[0].calls == ["zero", "before", "after", "before", "after", "before", "after", "step"]
    assert nets[1].calls == nets[0].calls
    np.testing.assert_allclose(nets[1].norms, nets[0].norms, rtol=1e-12)


@pytest.mark.parametrize("half", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_precision_in_parts_does_what_float32_does(half, accumulate, tmp_path):
    """fp16's scaler scales every part."""
    moves = []
    for precision, limit in (("32-true", 99), (half, 2)):
        net, overflow = Net(limit=limit, where="backward"), Overflow(9)
        start = torch.cat([p.detach().flatten() for p in net.parameters()])
        fit(net, tmp_path, MicroBatch(), overflow, precision=precision, accumulate_grad_batches=accumulate)
        moves.append(torch.cat([p.detach().flatten() for p in net.parameters()]) - start)
    assert (moves[0] - moves[1]).norm() < 0.02 * moves[0].norm()


def test_a_step_that_the_scaler_skips_changes_nothing(tmp_path):
    net, overflow = Net(limit=2), Overflow(1)
    fit(net, tmp_path, MicroBatch(), overflow, precision="16-mixed", max_epochs=1)
    del overflow.before["passed"], overflow.after["passed"]
    assert_equal_state(overflow.before, overflow.after)
    assert not torch.equal(net.last.weight, overflow.after["last.weight"])


@WHERE
def test_a_resumed_run_is_bitwise_the_straight_one(where, tmp_path):
    straight, _ = split(tmp_path, 2, where, max_epochs=3)
    first, callback = Net(limit=2, where=where).double(), MicroBatch()
    fit(first, tmp_path, callback, precision="64-true", max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    resumed, again = Net().double(), MicroBatch()  # with all memory of the world
    fit(resumed, tmp_path, again, precision="64-true", max_epochs=3, ckpt_path=tmp_path / "a.ckpt")
    assert_equal_state(weights(straight), weights(resumed))
    assert again.state_dict() == {"parts": 4}
    assert set(resumed.memory.sizes) == {2}


def test_what_it_tells(tmp_path):
    net = Net(limit=2)
    logger = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match="MicroBatch") as told:
        fit(net, tmp_path, MicroBatch(), logger=logger)
    texts = [str(w.message) for w in told if "MicroBatch" in str(w.message)]
    assert texts == [
        "Step 1, epoch 0: MicroBatch: out of memory, so the batch of 8 samples was passed in 4 parts of at most 2, and "
        "the next ones are too."
    ]
    assert (tmp_path / "lightning_logs/version_0/diagnosis.txt").read_text() == texts[0] + "\n"
    logger.save()
    with open(tmp_path / "lightning_logs/version_0/metrics.csv") as file:
        assert [row["train/micro_batch"] for row in csv.DictReader(file)] == ["4.0"]


def test_parts_to_begin_with(tmp_path):
    net, callback = split(tmp_path, 99, parts=3, max_epochs=1)
    assert net.memory.sizes == [3, 3, 2] * 3
    assert callback.state_dict() == {"parts": 3}
    with pytest.raises(InvalidValueError, match="parts is 0; it must be an integer of at least 1"):
        MicroBatch(parts=0)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(("skip", "share"), [(0.0, 0), (2.0, 5 / 8)], ids=["all", "one"])
def test_parts_that_return_none_are_left_out(skip, share, tmp_path):
    class Skips(Net):
        def training_step(self, batch, batch_idx):
            return None if batch[0][0, 0] > skip else self.last.bias[0] * batch[0].mean() / batch[0].mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    net = Skips().double()
    before = net.last.bias[0].item()
    x = torch.ones(8, 3, dtype=torch.float64)
    x[:3] = 8.0  # the first of three parts
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), 8)
    fit(net, tmp_path, MicroBatch(parts=3), precision="64-true", max_epochs=1, loader=loader)
    assert net.last.bias[0].item() == pytest.approx(before - share)


class Outputs(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs)


def test_what_the_step_returns_is_put_together(tmp_path):
    class Returns(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "x": batch[0] * self.last.weight[0, 0], "half": loss.detach() / 2, "text": "a"}

    seen = []
    for limit in (99, 3):
        outputs = Outputs()
        fit(Returns(limit=limit).double(), tmp_path, MicroBatch(), outputs, precision="64-true", max_epochs=1)
        seen.append(outputs.seen)
    for a, b in zip(*seen, strict=True):
        assert_close({k: v.detach() for k, v in a.items() if k != "text"}, {k: v for k, v in b.items() if k != "text"})
        assert b["text"] == "a"
        assert not b["x"].requires_grad


def test_an_optimizer_that_calls_its_closure_again(tmp_path):
    class Newton(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    nets = [Newton(limit=limit, where="backward").double() for limit in (99, 3)]
    for net in nets:
        fit(net, tmp_path, MicroBatch(), precision="64-true", max_epochs=1)
    assert_close(weights(nets[0]), weights(nets[1]), 1e-8)


@pytest.mark.filterwarnings("ignore:Step .*FiniteGuard")
def test_a_guard_refuses_the_step_of_a_batch_that_was_split(tmp_path):
    class Broken(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                batch[0][-1] = float("nan")  # in the last part alone

    results = []
    for limit in (99, 2):
        net = Net(limit=limit).double()
        fit(net, tmp_path, FiniteGuard(), MicroBatch(), Broken(), precision="64-true", max_epochs=1)
        results.append(weights(net))
        assert torch.isfinite(net.last.weight).all()
    assert_close(*results, 1e-12)


def test_nothing_is_left_behind(tmp_path):
    callback = MicroBatch()
    made = fit(Net(limit=2), tmp_path, callback)
    with pytest.raises(DoesNotFitError):
        fit(Net(limit=0), tmp_path, MicroBatch())
    assert "_make_closure" not in vars(made.fit_loop.epoch_loop.automatic_optimization)
    assert callback._pass is None


def test_what_term_gradients_has_seen_of_a_failed_step_is_forgotten():
    net = Net()
    vars(net)["_term_watch"] = watch = TermWatch()
    before = BeforeBatch(net, torch.device("cpu"))
    before.take()
    watch.task = net.last.weight.sum()  # a graph
    before.restore()
    assert vars(net)["_term_watch"].task is None
