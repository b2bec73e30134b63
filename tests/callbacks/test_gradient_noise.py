"""GradientNoise: its size at each step, what it depends on, and what it leaves alone."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_tuning.callbacks import GradientNoise
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import add_noise_, noise, noise_std
from tests.mixins.tiny import Tiny, batches, deep, fit, loader, smooth
from tests.numerics import array

from .reference import Recorder

STEPS = 4


class Still(pl.LightningModule):
    """A loss whose gradient is 3 everywhere, and SGD of rate 1: a step's change is minus its gradient."""

    def __init__(self, fused=False):
        super().__init__()
        self.parts = torch.nn.ParameterList([torch.zeros(50, 60), torch.zeros(5000), torch.zeros(10, 10, 10)])
        self.fused = fused

    def training_step(self, batch, batch_idx):
        self.changes.append([p.detach().clone() for p in self.parts])
        return sum(3.0 * p.sum() for p in self.parts)

    def on_train_start(self):
        self.changes = []

    def on_train_end(self):
        self.changes.append([p.detach().clone() for p in self.parts])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, fused=self.fused)


def gradients(noise, fused=False, precision="32-true", steps=STEPS, **kwargs):
    """The gradients of each step that reached the optimizer, ``[steps, 9000]``."""
    net = Still(fused)
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        kwargs["plugins"] = MixedPrecision("16-mixed", "cpu", scaler)
    fit(net, batches(steps), callbacks=[noise], **kwargs)
    flat = np.stack([np.concatenate([array(p).ravel() for p in parts]) for parts in net.changes])
    return flat[:-1] - flat[1:]


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (1.0, 2.0), (0.3, 0.0)])
@pytest.mark.parametrize("case", ["plain", "clipped", "fp16", "fp16 fused", "fused", "fp16 clipped"])
def test_its_variance_falls_by_the_formula_and_it_comes_after_clipping(eta, gamma, case):
    logger = Recorder()
    settings = {"fused": "fused" in case, "precision": "16-mixed" if "fp16" in case else "32-true"}
    clip = 1e-3 if "clipped" in case else None
    reached = gradients(
        GradientNoise(eta, gamma, seed=1), **settings, gradient_clip_val=clip, logger=logger, log_every_n_steps=1
    )
    mean = 3.0 if clip is None else clip / np.sqrt(9000)
    stds = [np.sqrt(eta / (1 + t) ** gamma) for t in range(STEPS)]
    noise = (reached - mean) / np.array(stds)[:, None]
    # Of 9000 numbers: standard errors 0.0105 of the mean, 0.0075 of the deviation.
    np.testing.assert_allclose(noise.mean(1), 0, atol=0.05)
    np.testing.assert_allclose(noise.std(1), 1, atol=0.04)
    assert np.abs(np.corrcoef(noise) - np.eye(STEPS)).max() < 0.06  # a new draw at each step
    assert np.abs(np.corrcoef(noise[0, :3000], noise[0, 3000:6000])[0, 1]) < 0.08  # and for each parameter
    assert np.abs((noise**3).mean()) < 0.1
    assert (noise**4).mean() == pytest.approx(3, abs=0.2)
    assert logger.values("train/gradient_noise") == pytest.approx(stds)


def test_noise_std():
    assert [noise_std(t, 0.3, 0.55) for t in (0, 7)] == pytest.approx([0.3**0.5, (0.3 / 8**0.55) ** 0.5])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_generator_alone_decides(dtype):
    before = [torch.randn(3, 4).to(dtype), torch.randn(7).to(dtype)]
    runs = []
    for seed in (1, 1, 2):
        parts = [p.clone() for p in before]
        add_noise_(parts, 0.5, torch.Generator().manual_seed(seed))
        runs.append(torch.cat([p.flatten() for p in parts]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert runs[0].dtype == dtype


def test_drawing_in_lots_gives_every_number_its_own_noise(monkeypatch):
    sizes = [300, 500, 10, 900, 100]  # lots of 300, 510, 900 and 100 numbers
    monkeypatch.setattr(noise, "_AT_ONCE", 600)
    gradients = [torch.zeros(size) for size in sizes]
    add_noise_(gradients, 1.0, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    expected = torch.cat([torch.randn(size, generator=generator) for size in (300, 510, 900, 100)])
    assert torch.equal(torch.cat(gradients), expected)
    assert len(expected.unique()) == 1810


def test_seeds_and_steps_and_optimizers_have_their_own_noise(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    reached = {seed: gradients(GradientNoise(seed=seed)) for seed in (0, 1, None)}
    assert not np.allclose(reached[0], reached[1])
    assert (reached[None] == reached[0]).all()
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert (gradients(GradientNoise()) == reached[1]).all()


class TwoOptimizers(Still):
    """Both are stepped by hand; the two parameters are alike."""

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ParameterList([torch.zeros(1000), torch.zeros(1000)])
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for i, optimizer in enumerate(self.optimizers()):
            if batch_idx % 2 == 0 or i == 0:
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=1.0) for p in self.parts]


def test_each_optimizer_has_its_own_count_and_noise():
    net, noise, logger = TwoOptimizers(), GradientNoise(), Recorder()
    fit(net, batches(5), callbacks=[noise], logger=logger, log_every_n_steps=1)
    assert noise.state_dict()["steps"] == [5, 3]
    first, second = (array(part) for part in net.changes[1])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert logger.values("train/gradient_noise/optimizer1") == pytest.approx(
        [noise_std(t, 0.01, 0.55) for t in range(3)]
    )


def test_dropout_draws_what_it_drew_and_eta_0_is_the_bare_run_bitwise():
    network, runs = deep(), {}
    for name, callbacks in {"bare": [], "off": [GradientNoise(eta=0)], "on": [GradientNoise()]}.items():
        net = Tiny(copy.deepcopy(network))
        torch.manual_seed(5)
        fit(net, batches(5), callbacks=callbacks)
        runs[name] = [*net.parameters()], torch.get_rng_state()
    assert torch.equal(runs["bare"][1], runs["on"][1])
    assert all(torch.equal(a, b) for a, b in zip(runs["bare"][0], runs["off"][0], strict=True))
    assert not torch.equal(runs["bare"][0][0], runs["on"][0][0])


def checkpoint(tmp_path, seed=3):
    trainer = fit(Tiny(smooth()), batches(4), callbacks=[GradientNoise(seed=seed)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_the_checkpoints_seed_is_taken_unless_another_is_given(tmp_path):
    path = checkpoint(tmp_path)
    noise = GradientNoise()
    fit(Tiny(smooth()), batches(4), callbacks=[noise], ckpt_path=path, max_epochs=2)
    assert noise.state_dict() == {"seed": 3, "steps": [8]}
    with pytest.warns(UserWarning, match="resumes a run of seed 3: .* Write seed=3 or leave the seed out"):
        fit(Tiny(smooth()), batches(4), callbacks=[GradientNoise(seed=4)], ckpt_path=path, max_epochs=2)


class SkippingNet(Tiny):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_batch_that_training_step_skips_is_no_step(precision):
    noise = GradientNoise()
    fit(SkippingNet(smooth()), batches(4), callbacks=[noise], precision=precision)
    assert noise.state_dict()["steps"] == [3]


def test_the_hook_is_put_back_after_an_exception():
    class Failing(Tiny):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[GradientNoise()])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(smooth()), loader(batches(1)))
    assert "_after_closure" not in vars(trainer.precision_plugin)
    assert not trainer.optimizers or not trainer.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": -1}, r"eta is -1; it must be a number in \[0, inf\)"),
        ({"gamma": -0.1}, r"gamma is -0.1; it must be a number in \[0, inf\)"),
        ({"seed": -1}, r"seed is -1; it must be an integer from 0 to 2\*\*64 - 1, or None"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        GradientNoise(**arguments)
