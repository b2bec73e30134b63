"""The statistics at each place where somebody meets the weights, against a computation by hand."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning import (
    BatchNormRecalibration,
    DigitsDataModule,
    EMATeacherMixin,
    ExactResume,
    ImageClassifier,
    PostHocEMA,
    WeightEMA,
    WeightSWA,
    assert_resumes_exactly,
)
from lightning_tuning.errors import InvalidValueError, NoEffectError

from ..contract.nets import InTurns, trainer
from ..contract.test_all_callbacks import KeptPlace

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.sum(1) > 0).long()


class Net(pl.LightningModule):
    def __init__(self, freeze=False):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.drop, self.order, self.freeze, self.seen = nn.Dropout(0.5), [], freeze, []

    def forward(self, x):
        return self.last(self.norm(self.drop(self.first(x))))

    def on_train_epoch_start(self):
        if self.freeze:
            self.norm.eval()

    def training_step(self, batch, batch_idx):
        self.order.append(batch[0].sum().item())
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.seen.append((self.norm.running_mean.clone(), right(self)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def right(net, x=X):
    """Mean and variance of batch norm's inputs under the present weights, in evaluation."""
    hidden = x.numpy() @ net.first.weight.detach().double().numpy().T + net.first.bias.detach().double().numpy()
    return hidden.mean(0), hidden.var(0, ddof=1)


def is_right(net, values=None):
    mean, variance = values or right(net)
    return np.allclose(net.norm.running_mean, mean, rtol=1e-9) and np.allclose(net.norm.running_var, variance)


def fit(callback, tmp_path, net=None, workers=0, generator=None, shuffle=True, **kwargs):
    torch.manual_seed(0)
    net = (net or Net()).double()
    dataset = TensorDataset(X, Y)
    train = DataLoader(
        dataset, 5, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0, generator=generator
    )
    callbacks = [callback] if callback else []
    settings = {"precision": "64-true", "callbacks": callbacks + kwargs.pop("others", []), "max_epochs": 3, **kwargs}
    made = trainer(tmp_path, **settings)
    made.fit(net, train, DataLoader(dataset, 24))
    return net, made


def test_a_run_ends_with_the_statistics_of_its_last_weights(tmp_path):
    net, _ = fit(BatchNormRecalibration(), tmp_path)
    assert is_right(net)
    assert not is_right(fit(None, tmp_path)[0])


def test_each_validation_sees_those_of_its_weights(tmp_path):
    net, _ = fit(BatchNormRecalibration(), tmp_path)
    assert len(net.seen) == 3
    assert all(np.allclose(seen, mean) for seen, (mean, _) in net.seen)


def test_a_limit_takes_the_first_batches(tmp_path):
    net, _ = fit(BatchNormRecalibration(batches=2), tmp_path, shuffle=False)
    assert is_right(net, right(net, X[:10]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own_generator", [False, True])
def test_training_goes_on_as_without_it(workers, own_generator, tmp_path):
    nets = []
    for callback in (None, BatchNormRecalibration(batches=3)):
        generator = torch.Generator().manual_seed(4) if own_generator else None
        # Validation within the epoch: the position of the loader and its workers must not move.
        nets.append(fit(callback, tmp_path, workers=workers, generator=generator, val_check_interval=2)[0])
        torch.manual_seed(1)
    assert nets[0].order == nets[1].order
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert nets[0].norm.num_batches_tracked == nets[1].norm.num_batches_tracked == 15
    assert all(m.training for m in nets[1].modules())


class Moving(pl.Callback):
    """Notes the running mean before each batch."""

    def __init__(self):
        self.means = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.means.append(pl_module.norm.running_mean.clone())


@pytest.mark.parametrize("average", [[], [WeightEMA(buffers="average")]], ids=["weights", "average"])
def test_training_goes_on_with_the_moving_averages(average, tmp_path):
    bare, mine = Moving(), Moving()
    fit(None, tmp_path, others=[*average, bare], val_check_interval=2)
    fit(None, tmp_path, others=[*average, BatchNormRecalibration(), mine], val_check_interval=2)
    assert len(mine.means) == 15
    assert all(map(torch.equal, mine.means, bare.means))


def test_an_average_moves_on_from_its_own_statistics(tmp_path):
    means = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            average = next(c for c in trainer.callbacks if isinstance(c, WeightEMA))._average
            means[-1].append(average.values()["norm.running_mean"].clone())

    for callbacks in ([], [BatchNormRecalibration()]):
        means.append([])
        fit(None, tmp_path, others=[WeightEMA(decay=0.5), *callbacks, Look()], val_check_interval=2)
    assert len(means[1]) == 15
    assert all(map(torch.equal, *means))


def test_weights_that_were_loaded_meanwhile_keep_their_statistics(tmp_path):
    class Load(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.norm.running_mean.fill_(7.0)

    moving = Moving()
    fit(BatchNormRecalibration(), tmp_path, others=[Load(), moving], max_epochs=2, limit_val_batches=0)
    assert (moving.means[5] == 7.0).all()


def test_a_run_that_max_steps_ended_goes_on_as_the_longer_one(tmp_path):
    def resumes(*callbacks):
        settings = {"accelerator": "cpu", "callbacks": [ExactResume(), *callbacks], "precision": "64-true"}
        assert_resumes_exactly(lambda: Net().double(), loaders, settings, ["max_steps", "validation end"])

    def loaders():
        dataset = TensorDataset(X[:20], Y[:20])
        return KeptPlace(dataset, 5, sampler=InTurns(20)), DataLoader(dataset, 20)

    resumes(BatchNormRecalibration())
    resumes(BatchNormRecalibration(validates=False))
    resumes(WeightEMA(decay=0.5), BatchNormRecalibration())
    resumes(WeightSWA(start="1st", every="1st"))
    resumes(WeightEMA(decay=0.5, buffers="recompute"))


def test_the_checkpoint_of_a_validation_has_what_was_validated(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
    net, _ = fit(BatchNormRecalibration(), tmp_path, others=[keep], enable_checkpointing=True)
    for epoch, (seen, _) in enumerate(net.seen):
        state = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(state["norm.running_mean"], seen)


class Stop(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("ending", [{}, {"max_steps": 12}, {"others": [Stop()]}], ids=["epochs", "steps", "stopped"])
def test_without_validations_only_the_end_is_recalibrated(ending, tmp_path):
    net, made = fit(BatchNormRecalibration(validates=False), tmp_path, **ending)
    assert made.global_step == {"max_steps": 12, "others": 10}.get(next(iter(ending), ""), 15)
    assert is_right(net)
    assert not any(np.allclose(seen, mean) for seen, (mean, _) in net.seen)


@pytest.mark.parametrize("length", [{}, {"max_steps": 12}])
def test_the_last_epochs_checkpoint_has_the_final_statistics(length, tmp_path):
    keep = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    callback = BatchNormRecalibration(validates=False)
    net, _ = fit(callback, tmp_path, others=[keep], enable_checkpointing=True, **length)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["norm.running_var"], net.norm.running_var)


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    net = Net(freeze=True)
    net.norm.running_mean.fill_(3.0)
    fit(BatchNormRecalibration(), tmp_path, net)
    assert torch.equal(net.norm.running_mean, torch.full((4,), 3.0, dtype=torch.float64))


class OnDevice(Net):
    """Augments where it is told that it trains, and notes the precision of its passes."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 5, batch[1]] if self.trainer.training else batch

    def forward(self, x):
        logits = super().forward(x)
        self.dtypes.add(logits.dtype)
        return logits


def test_the_passes_are_those_of_training(tmp_path):
    net, made = fit(BatchNormRecalibration(), tmp_path, OnDevice())
    assert is_right(net, right(net, X + 5))
    assert len(net.seen) == 3
    net = OnDevice()
    callback = BatchNormRecalibration()
    made = trainer(tmp_path, callbacks=[callback], precision="bf16-mixed", max_epochs=1)
    made.fit(net, DataLoader(TensorDataset(X.float(), Y), 5))
    assert net.dtypes == {torch.bfloat16}
    assert made.state.stage is None


class WithTeacher(EMATeacherMixin, Net):
    pass


def test_the_ema_teacher_that_answers_is_recalibrated(tmp_path):
    net, _ = fit(BatchNormRecalibration(), tmp_path, WithTeacher(ema_teacher_decay=0.9))
    assert is_right(net.ema_teacher)
    assert not is_right(net)


@pytest.mark.parametrize("length", [{}, {"limit_val_batches": 0}], ids=["validated", "end-only"])
@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_of_an_average_has_its_statistics(length, half, tmp_path):
    """In half precision what is shown of an average is a copy."""
    torch.manual_seed(0)
    keep = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    callbacks = [WeightEMA(decay=0.9), BatchNormRecalibration(), keep]
    settings = {"precision": "bf16-true"} if half else {}
    made = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, **length, **settings)
    data = TensorDataset(X.float(), Y)
    net = Net()
    made.fit(net, DataLoader(data, 5), DataLoader(data, 24))
    net.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    mean, _ = right(net.double(), X.to(torch.bfloat16).double() if half else X)
    np.testing.assert_allclose(net.norm.running_mean, mean, atol=2e-2 if half else 1e-5)


@pytest.mark.parametrize("kind", [WeightEMA, PostHocEMA])
def test_an_average_is_recalibrated_behind_it_and_refused_before_it(kind, tmp_path):
    net, _ = fit(kind(), tmp_path, others=[BatchNormRecalibration()])
    assert is_right(net)
    assert all(np.allclose(seen, mean) for seen, (mean, _) in net.seen)
    with pytest.raises(MisconfigurationException, match=f"Put it behind {kind.__name__}"):
        fit(BatchNormRecalibration(), tmp_path, others=[kind()])


def test_the_plain_images_of_a_datamodule(tmp_path):
    data = DigitsDataModule(num_labels=40, batch_size=16, augment="strong", steps_per_epoch=2, val_size=20)
    torch.manual_seed(0)
    model = ImageClassifier(network="cnn")
    callback = BatchNormRecalibration(batches=None, dataloader="plain_train_dataloader")
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, data)
    images = torch.cat([x for x, _ in data.plain_train_dataloader()])
    assert len(images) == 40
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    first.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach().double()))
    model.eval()(images)
    inputs = seen[0].numpy().swapaxes(0, 1).reshape(first.num_features, -1)
    np.testing.assert_allclose(first.running_mean, inputs.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.running_var, inputs.var(1, ddof=1), rtol=1e-4)


def test_a_keyed_loader_keeps_its_place(tmp_path):
    class Place(pl.Callback):
        states = []

        def on_train_batch_end(self, trainer, *args):
            self.states.append(trainer.fit_loop._combined_loader._state_dicts())

    states = []
    for callbacks in ([], [BatchNormRecalibration(batches=2)]):
        place = Place()
        place.states = []
        data = DigitsDataModule(num_labels=40, batch_size=16, steps_per_epoch=4, val_size=20)
        made = trainer(tmp_path, callbacks=[*callbacks, place], max_epochs=2, val_check_interval=2)
        made.fit(ImageClassifier(), data)
        states.append(place.states)
    assert states[0] == states[1]
    assert [state[0]["batches"] for state in states[1]] == [1, 2, 3, 4] * 2


def test_a_loader_that_keeps_its_place_gives_all_batches(tmp_path):
    torch.manual_seed(0)
    net, dataset = Net().double(), TensorDataset(X, Y)
    train, val = KeptPlace(dataset, 5, sampler=InTurns(24)), DataLoader(dataset, 24)
    trainer(tmp_path, callbacks=[BatchNormRecalibration()], precision="64-true").fit(net, train, val)
    assert len(net.seen) == 2
    assert all(np.allclose(seen, mean) for seen, (mean, _) in net.seen)
    assert is_right(net)


def test_two_ranks_have_the_statistics_of_all_samples(tmp_path):
    class Save(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(pl_module.state_dict(), tmp_path / f"rank{trainer.global_rank}.pt")

    torch.manual_seed(0)
    net = Net().double()
    train = DataLoader(TensorDataset(X, Y), 5, sampler=InTurns(24))
    ranks = {"strategy": "ddp_fork", "devices": 2, "precision": "64-true"}
    trainer(tmp_path, callbacks=[BatchNormRecalibration(), Save()], **ranks).fit(net, train)
    for rank in (0, 1):
        net.load_state_dict(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True))
        assert is_right(net)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0].float(), Y[0]


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match="batches is 0"):
        BatchNormRecalibration(batches=0)
    with pytest.raises(InvalidValueError, match="dataloader is 'plain', but neither the datamodule nor Net has"):
        fit(BatchNormRecalibration(dataloader="plain"), tmp_path)
    net = Net()
    net.norm = nn.Identity()
    with pytest.raises(NoEffectError, match="Net has no batch norm layer with running statistics"):
        trainer(tmp_path, callbacks=[BatchNormRecalibration()]).fit(net, DataLoader(TensorDataset(X.float(), Y), 5))
    endless = trainer(tmp_path, callbacks=[BatchNormRecalibration(batches=None)], max_steps=2)
    with pytest.raises(MisconfigurationException, match="loader is endless"):
        endless.fit(Net(), DataLoader(Endless(), 5))
    few = trainer(tmp_path, callbacks=[BatchNormRecalibration(batches=3)], max_steps=2, max_epochs=None)
    few.fit(Net(), DataLoader(Endless(), 5))
