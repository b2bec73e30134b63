"""Cycles, members and what they predict together, against numpy."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import ImageClassifier, LRRangeTest, Schedule, SnapshotEnsemble, WeightSWA
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs.summary import checkpoint_to_test

from ..contract.nets import InTurns, trainer

ROWS = 20
X = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.sum(1) > 0).long() + (X[:, 0] > 1).long()
EPOCHS, STEPS = 4, 4


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.rates = []

    def forward(self, x):
        return self.last(self.norm(self.first(x)))

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])
        return F.cross_entropy(self(batch[0]), batch[1])

    def evaluate(self, batch, name):
        logits = self(batch[0])
        self.log(f"{name}/loss", F.cross_entropy(logits, batch[1]), batch_size=len(logits), sync_dist=True)

    def validation_step(self, batch, batch_idx):
        self.evaluate(batch, "val")

    def test_step(self, batch, batch_idx):
        self.evaluate(batch, "test")

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).softmax(1)

    def configure_optimizers(self):
        groups = [{"params": self.first.parameters(), "lr": 0.2}, {"params": [*self.norm.parameters()]}]
        return torch.optim.SGD([*groups, {"params": self.last.parameters()}], lr=0.6, momentum=0.9)


class Keep(pl.Callback):
    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def batches(size):
    dataset = TensorDataset(X, Y)
    return DataLoader(dataset, size, sampler=InTurns(ROWS), generator=torch.Generator())


def make_trainer(callback, tmp_path, *others, **kwargs):
    return trainer(tmp_path, callbacks=[callback, *others], precision="64-true", max_epochs=EPOCHS, **kwargs)


def fit(callback, tmp_path, net=None, *others, **kwargs):
    net, keep = (net or Net()).double(), Keep()
    made = make_trainer(callback, tmp_path, *others, keep, **kwargs)
    made.fit(net, batches(5), batches(6))
    return net, keep.states, made


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def probabilities(state):
    s = {name: value.numpy() for name, value in state.items()}
    hidden = X.numpy() @ s["first.weight"].T + s["first.bias"]
    hidden = (hidden - s["norm.running_mean"]) / np.sqrt(s["norm.running_var"] + 1e-5)
    return softmax((hidden * s["norm.weight"] + s["norm.bias"]) @ s["last.weight"].T + s["last.bias"])


def quality(p):
    y, confidence = Y.numpy(), p.max(1)
    right, bins = p.argmax(1) == y, np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(15)]
    return {
        "accuracy": right.mean(),
        "nll": -np.log(p[np.arange(ROWS), y]).mean(),
        "brier": ((p - np.eye(3)[y]) ** 2).sum(1).mean(),
        "calibration_error": sum(gaps) / ROWS,
    }


def assert_reports(found, part, members):
    """What is logged is the quality of ``members``, of their mean, and the module's loss is the mean's."""
    voices = [probabilities(state) for state in members]
    names = [f"member_{i + 1}" for i in range(len(members))]
    for name, p in zip([*names, "ensemble"], [*voices, np.mean(voices, 0)], strict=True):
        for metric, value in quality(p).items():
            assert found[f"{part}/{name}_{metric}"] == pytest.approx(value, abs=1e-6), f"{name} {metric}"
    assert found[f"{part}/loss"] == pytest.approx(quality(np.mean(voices, 0))["nll"], rel=1e-6)
    assert len(found) == 1 + 4 * (len(members) + 1)


def test_the_learning_rate_is_the_papers(tmp_path):
    net, _, _ = fit(SnapshotEnsemble(cycles=3), tmp_path)
    factors = [0.5 * (np.cos(np.pi * ((t - 1) % 6) / 6) + 1) for t in range(1, 17)]  # ceil(16 / 3) steps a cycle
    np.testing.assert_allclose(net.rates, np.outer(factors, [0.2, 0.6, 0.6]), rtol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_a_rate_that_was_found_is_that_of_each_cycle(order, tmp_path):
    found = LRRangeTest(min_lr=1e-3, max_lr=2.0, steps=20, rule="minimum", apply=True)
    callbacks = [SnapshotEnsemble(cycles=2), found][::order]
    net, _, _ = fit(callbacks[0], tmp_path, None, callbacks[1])
    best = found.suggestions["minimum"]
    assert best != 0.6
    factors = [0.5 * (np.cos(np.pi * (t % 8) / 8) + 1) for t in range(16)]
    np.testing.assert_allclose(net.rates[-16:], np.outer(factors, [best / 3, best, best]), rtol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_members_are_the_weights_at_each_cycles_end(accumulate, tmp_path):
    callback = SnapshotEnsemble(cycles=3)
    _, states, made = fit(callback, tmp_path, accumulate_grad_batches=accumulate)
    ends = [6, 12, 16] if accumulate == 1 else [3, 6, 8]
    assert made.global_step == ends[-1]
    taken = callback.state_dict()["members"]
    assert len(taken) == 3
    for member, end in zip(taken, ends, strict=True):
        assert all(torch.equal(member[name], value) for name, value in states[end * accumulate - 1].items())


def test_the_members_answer_together(tmp_path):
    callback = SnapshotEnsemble(cycles=3)
    net, states, made = fit(callback, tmp_path)
    members = [states[end - 1] for end in (6, 12, 16)]
    assert_reports(made.test(net, batches(6), verbose=False)[0], "test", members)
    assert_reports(made.validate(net, batches(7), verbose=False)[0], "val", members)
    predicted = torch.cat(made.predict(net, batches(6)))
    np.testing.assert_allclose(predicted, np.mean([probabilities(m) for m in members], 0), rtol=1e-9)
    assert "forward" not in vars(net)
    np.testing.assert_allclose(net.eval()(X).detach().softmax(1), probabilities(members[-1]), rtol=1e-9)


def test_the_last_members_alone(tmp_path):
    callback = SnapshotEnsemble(cycles=4, members=2)
    net, states, made = fit(callback, tmp_path)
    assert_reports(made.test(net, batches(6), verbose=False)[0], "test", [states[11], states[15]])


def test_its_checkpoint_holds_the_ensemble_for_another_process(tmp_path):
    callback = SnapshotEnsemble(cycles=2)
    _, states, made = fit(callback, tmp_path)
    path = callback.made_checkpoint
    assert checkpoint_to_test(made) == str(path)
    fresh = make_trainer(SnapshotEnsemble(cycles=2), tmp_path)
    found = fresh.test(Net().double(), batches(6), ckpt_path=path, weights_only=True, verbose=False)[0]
    assert_reports(found, "test", [states[7], states[15]])


def test_given_checkpoints_are_a_deep_ensemble(tmp_path):
    states = fit(SnapshotEnsemble(), tmp_path)[1]
    paths = []
    for i in (3, 9):
        paths.append(str(tmp_path / f"{i}.ckpt"))
        torch.save({"state_dict": states[i]}, paths[-1])
    made = make_trainer(SnapshotEnsemble(checkpoints=paths), tmp_path)
    assert_reports(made.test(Net().double(), batches(6), verbose=False)[0], "test", [states[3], states[9]])
    with pytest.raises(MisconfigurationException, match="takes none from a fit"):
        fit(SnapshotEnsemble(checkpoints=paths), tmp_path)
    torch.save({"state_dict": nn.Linear(1, 1).state_dict()}, paths[1])
    with pytest.raises(InvalidValueError, match=r"9.ckpt is not of the model that Net is of: it has bias besides"):
        make_trainer(SnapshotEnsemble(checkpoints=paths), tmp_path).test(Net().double(), batches(6), verbose=False)


def test_validations_within_the_fit_measure_the_weights(tmp_path):
    _, states, made = fit(SnapshotEnsemble(cycles=4), tmp_path)
    assert made.callback_metrics["val/loss"] == pytest.approx(quality(probabilities(states[-1]))["nll"], rel=1e-6)
    assert set(made.callback_metrics) == {"val/loss"}


def test_a_schedule_of_the_users_own(tmp_path):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(MisconfigurationException, match="sets the learning rate, and so does the module's StepLR"):
        fit(SnapshotEnsemble(), tmp_path, Scheduled())
    callback = SnapshotEnsemble(cycles=2, sets_lr=False)
    net, states, _ = fit(callback, tmp_path, Scheduled())
    assert net.rates[-1] == pytest.approx([0.2e-3, 0.6e-3, 0.6e-3])
    assert torch.equal(callback.state_dict()["members"][0]["last.bias"], states[7]["last.bias"])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", [partial(Schedule, "0.lr"), partial(WeightSWA, start="1ep", lr=0.1)])
def test_another_callback_that_sets_the_rate_is_refused(other, order, tmp_path):
    callbacks = [SnapshotEnsemble(), other()][::order]
    with pytest.raises(MisconfigurationException, match="sets the learning rate, and so does"):
        fit(callbacks[0], tmp_path, None, callbacks[1])


def test_several_optimizers_are_refused(tmp_path):
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.SGD(self.last.parameters(), lr=0.1)]

    with pytest.raises(MisconfigurationException, match="counts the steps of one optimizer, but Two has 2"):
        fit(SnapshotEnsemble(), tmp_path, Two())


def test_two_ranks_report_what_one_process_does(tmp_path):
    class Save(pl.Callback):
        def on_test_end(self, trainer, pl_module):
            torch.save(dict(trainer.callback_metrics), tmp_path / f"rank{trainer.global_rank}.pt")

    states = fit(SnapshotEnsemble(), tmp_path)[1]
    torch.save({"state_dict": states[3]}, tmp_path / "a.ckpt")
    torch.save({"state_dict": states[9]}, tmp_path / "b.ckpt")
    callback = SnapshotEnsemble(checkpoints=[str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")])
    made = make_trainer(callback, tmp_path, Save(), strategy="ddp_fork", devices=2)
    made.test(Net().double(), batches(4), verbose=False)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert_reports({name: value.item() for name, value in found.items()}, "test", [states[3], states[9]])


def test_another_call_within_a_batch_is_not_measured(tmp_path):
    class Twice(Net):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            self(-batch[0])

    net, states, made = fit(SnapshotEnsemble(cycles=2), tmp_path, Twice())
    assert_reports(made.test(net, batches(6), verbose=False)[0], "test", [states[7], states[15]])


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_average_their_own_way(task, tmp_path):
    net, states, made = fit(SnapshotEnsemble(cycles=2), tmp_path)
    net.task = task
    logits = []
    for state in (states[7], states[15]):
        other = Net().double()
        other.load_state_dict(state)
        logits.append(other.eval()(X).detach())
    net.predict_step = lambda batch, batch_idx: net(batch[0])
    found = torch.cat(made.predict(net, batches(6)))
    expected = sum(logits) / 2 if task == "regression" else (sum(z.sigmoid() for z in logits) / 2).logit()
    torch.testing.assert_close(found, expected)
    assert set(made.test(net, batches(6), verbose=False)[0]) == {"test/loss"}


def test_a_ready_host(tmp_path):
    torch.manual_seed(0)
    images, ids = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    data = DataLoader(TensorDataset(images, ids), 6)
    net = ImageClassifier(network="cnn", num_classes=3, image_size=8)
    made = trainer(tmp_path, callbacks=[SnapshotEnsemble(cycles=2)], max_epochs=2)
    made.fit(net, data)
    found = made.test(net, data, verbose=False)[0]
    assert found["test/accuracy"] == pytest.approx(found["test/ensemble_accuracy"])
    assert found["test/loss"] == pytest.approx(found["test/ensemble_nll"], rel=1e-5)
    assert found["test/calibration_error"] == pytest.approx(found["test/ensemble_calibration_error"], abs=1e-5)


class PastForward(Net):
    def test_step(self, batch, batch_idx):
        return F.cross_entropy(self.last(self.norm(self.first(batch[0]))), batch[1])


class Wrapped(Net):
    def forward(self, x):
        return super().forward(x) if self.training else {"logits": super().forward(x)}

    def evaluate(self, batch, name):
        self(batch[0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [(PastForward, "PastForward is called, but its step did not"), (Wrapped, "Wrapped.forward returned a dict")],
)
def test_modules_that_do_not_give_logits_are_told(kind, message, tmp_path):
    net, _, made = fit(SnapshotEnsemble(cycles=2), tmp_path, kind())
    with pytest.raises(InvalidValueError, match=message):
        made.test(net, batches(6), verbose=False)
    assert "forward" not in vars(net)


def test_without_members_the_module_answers_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="no members, so the module answers alone"):
        found = make_trainer(SnapshotEnsemble(), tmp_path).test(Net().double(), batches(6), verbose=False)[0]
    assert set(found) == {"test/loss"}


def test_arguments_are_checked():
    with pytest.raises(InvalidValueError, match="cycles is 0"):
        SnapshotEnsemble(cycles=0)
    with pytest.raises(InvalidValueError, match="members is 0"):
        SnapshotEnsemble(members=0)
    with pytest.raises(InvalidValueError, match="members is 4; it must be at most cycles, 3"):
        SnapshotEnsemble(cycles=3, members=4)
    with pytest.raises(InvalidValueError, match=r"checkpoints is \[\]; it must be a list of files"):
        SnapshotEnsemble(checkpoints=[])


def test_cycles_of_one_step_are_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"cycles is 99, but the run has .* optimizer steps"):
        fit(SnapshotEnsemble(cycles=99), tmp_path)
