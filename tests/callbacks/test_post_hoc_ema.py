"""Averages of any length, from a run's own files, against sums over all of its weights."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tuning import MonitorCheck, PostHocEMA, WeightEMA
from lightning_tuning.callbacks import post_hoc_ema
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import gamma_of
from lightning_tuning.runs.summary import checkpoint_to_test
from lightning_tuning.whole_file import write_whole

from .test_weight_swa import STEPS, X, fit, state
from .test_weight_swa import Net as SWANet

EPOCHS = 25
TOTAL = EPOCHS * STEPS


class Net(SWANet):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def run(callback, tmp_path, *others, epochs=EPOCHS, **kwargs):
    return fit(callback, tmp_path, *others, epochs=epochs, net=kwargs.pop("net", None) or Net(), **kwargs)


def shares_of_steps(steps, sigma_rel):
    return np.diff((np.arange(steps + 1) / steps) ** (gamma_of(sigma_rel) + 1))


def average(raw, sigma_rel, name, steps=TOTAL):
    rows = np.stack([s[name].numpy() for s in raw[:steps]])
    return np.tensordot(shares_of_steps(steps, sigma_rel), rows, 1)


def test_validations_and_the_end_have_the_first_average(tmp_path):
    net, raw, _ = run(PostHocEMA(sigma_rels=[0.1, 0.05]), tmp_path)
    for name in ("first.weight", "norm.bias", "norm.running_var", "last.weight"):
        np.testing.assert_allclose(state(net)[name], average(raw, 0.1, name), rtol=1e-10)
        np.testing.assert_allclose(net.validated[4][name], average(raw, 0.1, name, 5 * STEPS), rtol=1e-10)


def test_training_is_as_without_it(tmp_path):
    raw, with_it = run(None, tmp_path)[1], run(PostHocEMA(candidates=[0.1]), tmp_path)[1]
    for a, b in zip(raw, with_it, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_files_hold_both_averages_in_time(tmp_path):
    raw = run(PostHocEMA(store_every="30st"), tmp_path)[1]
    files = sorted((tmp_path / "post_hoc_ema").iterdir())
    assert [file.name for file in files] == [f"{t:09d}.pt" for t in (30, 60, 90, 100)]
    held = torch.load(files[1], weights_only=True)
    assert held["updates"] == 60
    for sigma_rel, found in zip((0.05, 0.1), held["averages"], strict=True):
        np.testing.assert_allclose(found["last.bias"], average(raw, sigma_rel, "last.bias", 60), rtol=1e-10)


@pytest.mark.parametrize(
    ("sigma_rel", "steps", "tolerance"),
    [(0.05, None, 1e-6), (0.1, None, 1e-6), (0.07, None, 0.01), (0.15, None, 0.01), (0.2, None, 0.03), (0.12, 60, 0.01)]
)  # fmt: skip
def test_any_length_is_reconstructed(sigma_rel, steps, tolerance, tmp_path):
    net, raw, _ = run(PostHocEMA(), tmp_path)
    made = PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", sigma_rel, steps)
    for name in ("first.weight", "last.weight", "norm.weight"):
        wanted = average(raw, sigma_rel, name, steps or TOTAL)
        away = raw[(steps or TOTAL) - 1][name].numpy() - wanted
        assert np.linalg.norm(made[name].numpy() - wanted) < tolerance * np.linalg.norm(away)
    assert made["last.weight"].dtype == torch.float64
    net.load_state_dict(made, strict=False)


def test_the_best_candidate_is_delivered(tmp_path):
    callback = PostHocEMA(candidates=[0.05, 0.12, 0.25])
    net, _, made = run(callback, tmp_path)
    losses = {}
    for sigma_rel in callback.candidates:
        fresh = Net().double()
        fresh.load_state_dict(PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", sigma_rel), strict=False)
        with torch.no_grad():
            hidden = fresh.first(X)
            fresh.norm.running_mean.copy_(hidden.mean(0))
            fresh.norm.running_var.copy_(hidden.var(0))
            logits = fresh.eval()(X)
        target = (X.sum(1) > 0).long()
        losses[sigma_rel] = torch.nn.functional.cross_entropy(logits, target).item()
        assert callback.scores[sigma_rel] == pytest.approx(losses[sigma_rel], rel=1e-5)
        if losses[sigma_rel] == min(losses.values()):
            best = fresh
    torch.testing.assert_close(state(net)["last.weight"], state(best)["last.weight"])
    torch.testing.assert_close(state(net)["norm.running_var"], state(best)["norm.running_var"], rtol=1e-6, atol=0)
    assert checkpoint_to_test(made) == str(callback.made_checkpoint)
    saved = torch.load(callback.made_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in state(net).items())


def test_the_largest_is_best_if_wanted(tmp_path):
    callback = PostHocEMA(candidates=[0.05, 0.25], mode="max")
    run(callback, tmp_path, epochs=5)
    worst = max(callback.scores, key=callback.scores.get)
    made = PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", worst)
    saved = torch.load(callback.made_checkpoint, weights_only=True)["state_dict"]
    torch.testing.assert_close(saved["last.weight"], made["last.weight"])


def test_a_folder_holds_the_files_of_one_run(tmp_path):
    run(PostHocEMA(store_every="3st"), tmp_path, epochs=4)
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    raw = run(PostHocEMA(store_every="4st"), tmp_path, keep, epochs=3, enable_checkpointing=True)[1]
    assert [int(file.stem) for file in sorted((tmp_path / "post_hoc_ema").glob("*.pt"))] == [4, 8, 12]
    made = PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", 0.1)
    np.testing.assert_allclose(made["last.weight"], average(raw, 0.1, "last.weight", 12), rtol=1e-6)
    run(PostHocEMA(store_every="5st"), tmp_path, epochs=2, ckpt_path=tmp_path / "step=6.ckpt")
    assert [int(file.stem) for file in sorted((tmp_path / "post_hoc_ema").glob("*.pt"))] == [4, 8]
    aside = [sorted((tmp_path / f"post_hoc_ema_earlier_{number}").glob("*.pt")) for number in (1, 2)]
    assert [int(file.stem) for file in aside[0]] == [3, 6, 9, 12, 15, 16]
    assert [int(file.stem) for file in aside[1]] == [12]


def test_only_with_candidates_the_metric_is_looked_for(tmp_path):
    assert PostHocEMA().monitor is None
    refused = pl.utilities.exceptions.MisconfigurationException
    with pytest.raises(refused, match="PostHocEMA monitors 'val/accuracy', which validation never logs"):
        run(PostHocEMA(candidates=[0.1], monitor="val/accuracy"), tmp_path, MonitorCheck(), num_sanity_val_steps=1)


@pytest.mark.parametrize("saved_at", [6, 8])
def test_a_resumed_run_stores_and_delivers_the_same(saved_at, tmp_path):
    def callback():
        return PostHocEMA(store_every="3st", candidates=[0.07, 0.2])

    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_at, save_top_k=-1)
    straight, _, _ = run(callback(), tmp_path, keep, epochs=4, enable_checkpointing=True)
    files = {file.name: torch.load(file, weights_only=True) for file in (tmp_path / "post_hoc_ema").iterdir()}
    resumed = Net()
    run(callback(), tmp_path, net=resumed, epochs=4, ckpt_path=tmp_path / f"step={saved_at}.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for file, before in files.items():
        after = torch.load(tmp_path / "post_hoc_ema" / file, weights_only=True)
        for a, b in zip(before["averages"], after["averages"], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_unfrozen_joins_all_averages(tmp_path):
    class Late(Net):
        def __init__(self):
            super().__init__()
            self.last.requires_grad_(False)

        def on_train_epoch_start(self):
            self.last.requires_grad_(self.current_epoch >= 2)

    run(PostHocEMA(store_every="1ep"), tmp_path, net=Late(), epochs=4)
    first, last = (torch.load(tmp_path / "post_hoc_ema" / f"{t:09d}.pt", weights_only=True) for t in (4, 16))
    assert all("last.weight" not in held for held in first["averages"])
    assert all("last.weight" in held for held in last["averages"])
    assert "last.weight" in PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", 0.1)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match="at least two different lengths"):
        PostHocEMA(sigma_rels=[0.1, 0.1])
    with pytest.raises(InvalidValueError, match=r"candidates is 0.4; it must be a number in \(0, 0.28"):
        PostHocEMA(candidates=[0.4])
    for wrong in (0.1, [], "0.1"):
        with pytest.raises(InvalidValueError, match=r"candidates is .*; it must be a list of lengths, or None"):
            PostHocEMA(candidates=wrong)
    with pytest.raises(InvalidValueError, match=r"sigma_rels is 0\.1; it must be a list of at least two"):
        PostHocEMA(sigma_rels=0.1)
    with pytest.raises(InvalidValueError, match="store_every is '5'"):
        PostHocEMA(store_every="5")
    with pytest.raises(InvalidValueError, match="there are no files"):
        PostHocEMA.reconstruct(tmp_path, 0.1)
    run(PostHocEMA(store_every="4st"), tmp_path, epochs=2)
    with pytest.raises(InvalidValueError, match="updates is 5; there are files of 4, 8"):
        PostHocEMA.reconstruct(tmp_path / "post_hoc_ema", 0.1, 5)
    with pytest.raises(InvalidValueError, match="compares by 'val/accuracy', which validation does not log"):
        run(PostHocEMA(candidates=[0.1], monitor="val/accuracy"), tmp_path, epochs=2)
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="both put averaged weights"):
        run(PostHocEMA(), tmp_path, WeightEMA(), epochs=2)


def test_a_full_disk_costs_a_file_and_not_the_run(tmp_path, monkeypatch):
    def full(content, path):
        if path.name == f"{2 * STEPS:09d}.pt":
            raise OSError("No space left on device")
        write_whole(content, path)

    callback = PostHocEMA(store_every="1ep", candidates=[0.1])
    monkeypatch.setattr(post_hoc_ema, "write_whole", full)
    with pytest.warns(UserWarning, match="was not written: No space left on device. The averages are made without it"):
        run(callback, tmp_path, epochs=4)
    stored = [int(path.stem) for path in sorted((tmp_path / "post_hoc_ema").glob("*"))]
    assert stored == [STEPS, 3 * STEPS, 4 * STEPS]
    assert callback.made_checkpoint.is_file()
