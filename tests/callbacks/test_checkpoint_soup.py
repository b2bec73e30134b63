"""Soups of files whose weights and losses are known, against means and choices by hand."""

from __future__ import annotations

import os

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import CheckpointSoup, EarlyStop, PostHocEMA, WeightEMA
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.runs.summary import checkpoint_to_test

from ..contract.nets import InTurns, trainer
from .test_weight_swa import Net as SWANet
from .test_weight_swa import X, Y, assert_is_mean


class Net(SWANet):
    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()
        if width != 4:
            self.last = nn.Linear(4, width)

    def on_validation_epoch_end(self):
        self.log("val/loss_again", 0.0)


def net(seed):
    made = Net().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    made.norm.num_batches_tracked.fill_(10 + seed)
    return made


def write(folder, *nets):
    """Checkpoint files of these modules."""
    paths = []
    for i, module in enumerate(nets):
        made = trainer(folder)
        made.strategy.connect(module)
        paths.append(str(folder / f"{i}.ckpt"))
        made.save_checkpoint(paths[-1])
    return paths


def loaders():
    dataset = TensorDataset(X, Y)
    return DataLoader(dataset, 5, sampler=InTurns(20)), DataLoader(dataset, 20)


def fit(soup, tmp_path, *others, module=None, **kwargs):
    module = module or Net().double()
    settings = {"precision": "64-true", "max_epochs": 1, "callbacks": [*others, soup], **kwargs}
    made = trainer(tmp_path, **settings)
    made.fit(module, *loaders())
    return module, made


def states_of(paths):
    return [torch.load(path, weights_only=True)["state_dict"] for path in paths]


def test_the_uniform_soup_of_files_is_their_mean_with_its_own_statistics(tmp_path):
    paths = write(tmp_path, *map(net, range(3)))
    module, _ = fit(CheckpointSoup([str(tmp_path / "*.ckpt")], method="uniform"), tmp_path)
    assert_is_mean(dict(module.state_dict()), states_of(paths))
    assert module.norm.num_batches_tracked == 10
    assert all(m.training for m in module.modules())


def test_without_recalibration_the_statistics_are_averaged(tmp_path):
    nets = [net(0), net(1)]
    for i, module in enumerate(nets):
        module.norm.running_mean.fill_(float(i))
    paths = write(tmp_path, *nets)
    module, _ = fit(CheckpointSoup(paths, method="uniform", recalibrate=False), tmp_path)
    assert torch.equal(module.norm.running_mean, torch.full((4,), 0.5, dtype=torch.float64))


def test_the_soup_is_written_for_everybody_who_takes_checkpoints(tmp_path):
    soup = CheckpointSoup(write(tmp_path, net(0), net(1)), method="uniform")
    module, made = fit(soup, tmp_path)
    assert soup.made_checkpoint == tmp_path / "checkpoints" / "soup.ckpt"
    assert checkpoint_to_test(made) == str(soup.made_checkpoint)
    loaded = Net.load_from_checkpoint(soup.made_checkpoint, weights_only=True)
    torch.testing.assert_close(loaded.state_dict(), module.float().state_dict())
    assert "optimizer_states" not in torch.load(soup.made_checkpoint, weights_only=True)
    trainer(tmp_path).validate(Net().double(), loaders()[1], ckpt_path=soup.made_checkpoint, verbose=False)


def loss_by_hand(states):
    """The validation loss of the mean of states, in numpy; a single one has its own statistics."""
    mean = {name: np.mean([s[name].numpy() for s in states], 0) for name in states[0]}
    hidden = X.numpy() @ mean["first.weight"].T + mean["first.bias"]
    m, v = mean["norm.running_mean"], mean["norm.running_var"]
    if len(states) > 1:
        m, v = hidden.mean(0), hidden.var(0, ddof=1)
    hidden = (hidden - m) / np.sqrt(v + 1e-5) * mean["norm.weight"] + mean["norm.bias"]
    logits = hidden @ mean["last.weight"].T + mean["last.bias"]
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return -logits[np.arange(20), Y].mean()


@pytest.mark.parametrize("seed", [0, 10, 20])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_greedy_soup_is_the_papers(seed, mode, tmp_path):
    paths = write(tmp_path, *map(net, range(seed, seed + 4)))
    states, sign = states_of(paths), {"min": 1, "max": -1}[mode]
    order = sorted(range(4), key=lambda i: sign * loss_by_hand([states[i]]))
    chosen = order[:1]
    for i in order[1:]:
        with_it, without = (loss_by_hand([states[j] for j in part]) for part in ([*chosen, i], chosen))
        if sign * with_it <= sign * without:
            chosen.append(i)
    soup = CheckpointSoup(paths, monitor="val/loss", mode=mode)
    module, made = fit(soup, tmp_path)
    assert soup.chosen == [paths[i] for i in chosen]
    found = made.validate(module, loaders()[1], verbose=False)[0]["val/loss"]
    assert found == pytest.approx(loss_by_hand([states[i] for i in chosen]), rel=1e-9)


class Watch(pl.Callback):
    def __init__(self):
        self.validations, self.stage = 0, None

    def on_fit_end(self, trainer, pl_module):
        self.stage = trainer.state.stage

    def on_validation_end(self, trainer, pl_module):
        self.validations += not trainer.sanity_checking


def test_the_runs_own_checkpoints_by_its_own_metric_unseen_by_others(tmp_path):
    keep, watch = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/loss", save_top_k=3), Watch()
    soup = CheckpointSoup()
    kept = {"enable_checkpointing": True, "max_epochs": 5, "logger": CSVLogger(tmp_path)}
    module, made = fit(soup, tmp_path, keep, watch, **kept)
    assert set(soup.chosen) <= set(keep.best_k_models)
    assert soup.chosen[0] == keep.best_model_path
    assert len(keep.best_k_models) == 3
    assert watch.validations == 5
    assert watch.stage == "train"
    validations = [row for row in made.logger.experiment.metrics if "val/loss" in row]
    assert len(validations) <= 5
    assert made.global_step == 20
    states = states_of(soup.chosen)
    if len(states) > 1:
        assert_is_mean(dict(module.state_dict()), states)


def test_all_checkpoints_of_a_keeper_without_a_metric(tmp_path):
    (tmp_path / "kept").mkdir()
    old = write(tmp_path / "kept", net(5))[0]
    os.utime(old, (0, 0))
    keep = ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1)
    soup = CheckpointSoup(method="uniform")
    module, _ = fit(soup, tmp_path, keep, enable_checkpointing=True, max_epochs=3)
    assert soup.chosen == [str(tmp_path / "kept" / f"epoch={i}.ckpt") for i in range(3)]
    assert old not in soup.chosen
    assert_is_mean(dict(module.state_dict()), states_of(soup.chosen))


def test_python_writes_a_soup_without_a_trainer(tmp_path):
    paths = write(tmp_path, net(0), net(1))
    first = torch.load(paths[0], weights_only=True)
    torch.save({**first, "optimizer_states": [{}], "loops": {}}, paths[0])
    CheckpointSoup.write(paths, tmp_path / "soup.ckpt")
    assert not {"optimizer_states", "loops"} & torch.load(tmp_path / "soup.ckpt", weights_only=True).keys()
    states, loaded = states_of(paths), Net.load_from_checkpoint(tmp_path / "soup.ckpt", weights_only=True)
    mean = (states[0]["last.weight"] + states[1]["last.weight"]) / 2
    torch.testing.assert_close(loaded.last.weight.data, mean.float())


def test_two_ranks_make_the_same_soup(tmp_path):
    class Save(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(pl_module.state_dict(), tmp_path / f"rank{trainer.global_rank}.pt")

    paths = write(tmp_path, *map(net, range(3)))
    soup = CheckpointSoup(paths, monitor="val/loss", mode="min")
    module = Net().double()
    made = trainer(
        tmp_path, strategy="ddp_fork", devices=2, precision="64-true", callbacks=[soup, Save()], max_epochs=1
    )
    made.fit(module, *loaders())
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Fails(Net):
    def on_validation_epoch_end(self):
        if self.global_step and not self.training and self.trainer.callbacks == []:
            raise RuntimeError("of the user")


def test_an_error_leaves_the_weights_that_were_trained(tmp_path):
    paths = write(tmp_path, net(0), net(1))
    module = Fails().double()
    with pytest.raises(RuntimeError, match="of the user"):
        fit(CheckpointSoup(paths, monitor="val/loss", mode="min"), tmp_path, module=module)
    plain, _ = fit(pl.Callback(), tmp_path)
    assert torch.equal(module.last.weight, plain.last.weight)


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    def refused(error, match, soup, *others, **kwargs):
        with pytest.raises(error, match=match):
            fit(soup, tmp_path, *others, **kwargs)

    (tmp_path / "a").mkdir()
    paths = write(tmp_path, net(0), Net(width=3).double())
    other = r"1.ckpt is not of the model that Net is of: last.bias is \[3\] instead of \[2\]"
    refused(InvalidValueError, other, CheckpointSoup(paths, method="uniform"))
    state = torch.load(paths[0], weights_only=True)
    del state["state_dict"]["norm.bias"]
    torch.save(state, paths[1])
    refused(InvalidValueError, "it has no norm.bias", CheckpointSoup(paths, method="uniform"))
    with pytest.raises(InvalidValueError, match=r"1.ckpt is not of the model that .*0.ckpt is of: it has no norm"):
        CheckpointSoup.write(paths, tmp_path / "soup.ckpt")
    torch.save({"x": 1}, paths[1])
    refused(InvalidValueError, "1.ckpt is no checkpoint of a Light", CheckpointSoup(paths, method="uniform"))
    (tmp_path / "1.ckpt").write_text("no")
    refused(InvalidValueError, "1.ckpt cannot be read", CheckpointSoup(paths, method="uniform"))
    refused(InvalidValueError, "there is no checkpoint .*none.ckpt", CheckpointSoup([str(tmp_path / "none.ckpt")]))
    refused(MisconfigurationException, "the run keeps, and it keeps none. Add ModelCheckpoint", CheckpointSoup())
    one = ModelCheckpoint(tmp_path, monitor="val/loss")
    refused(NoEffectError, "the run keeps 1 checkpoint", CheckpointSoup(), one, enable_checkpointing=True)
    refused(MisconfigurationException, "Give monitor and mode", CheckpointSoup(paths[:1]))
    made = trainer(tmp_path, callbacks=[CheckpointSoup(paths[:1], method="uniform"), WeightEMA()])
    with pytest.raises(MisconfigurationException, match="Put CheckpointSoup behind WeightEMA"):
        made.fit(Net(), *loaders())
    with pytest.raises(InvalidValueError, match="mode is None; write mode: min or"):
        CheckpointSoup(monitor="val/loss")
    with pytest.raises(InvalidValueError, match=r"checkpoints is 'a.ckpt'; it must be a list"):
        CheckpointSoup("a.ckpt")
    for wrong in ([], "a.ckpt"):
        with pytest.raises(InvalidValueError, match="it must be a list of at least one file"):
            CheckpointSoup.write(wrong, tmp_path / "soup.ckpt")


@pytest.mark.parametrize("chooses", [lambda: CheckpointSoup(["*.ckpt"]), lambda: PostHocEMA(candidates=[0.1])])
def test_early_stop_may_not_put_other_weights_in_its_place(chooses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, net(0), net(1))
    with pytest.raises(MisconfigurationException, match=r"EarlyStop's would win\. Write restore_best: false"):
        fit(chooses(), tmp_path, EarlyStop("val/loss"))


def test_a_metric_that_validation_does_not_log(tmp_path):
    paths = write(tmp_path, net(0), net(1))
    with pytest.raises(
        InvalidValueError, match=r"compares by 'val/los', .*; did you mean 'val/loss'\? It logs: val/loss"
    ):
        fit(CheckpointSoup(paths, monitor="val/los", mode="min"), tmp_path)


def test_a_single_checkpoint_is_no_soup(tmp_path):
    paths = write(tmp_path, net(0))
    with pytest.warns(UserWarning, match="did nothing: the run has kept 1 checkpoint"):
        module, _ = fit(CheckpointSoup(paths, method="uniform"), tmp_path)
    assert not torch.equal(module.last.weight, states_of(paths)[0]["last.weight"])
