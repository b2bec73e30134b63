"""GradientNorm layer by layer behind each kind of clipping; the share of clipped steps; updates; the picture."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from lightning_tuning import SAMMixin, compose
from lightning_tuning.callbacks import AdaptiveGradientClipping, AutoClip, GradientNorm, _clipped_share, gradient_norm
from lightning_tuning.callbacks._clipped_share import ClippedShare
from lightning_tuning.callbacks._heat_maps import norm_map
from tests.contract.test_contract import Overflow

from .test_gradient_norm import Net, TwoOptimizers, Witness, fit, loader

LAYERS = ("body.0", "body.2", "head")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the time that it takes to draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gradient_norm, "norm_map", lambda *args: Figure(figsize=(1, 1)))


class Own(Net):
    """Clips by itself, the head alone."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 0.1)


class ByLibrary(Net):
    """Clips by itself, through Lightning."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, 0.5, "norm")


MODES: dict[str, Any] = {
    "norm": (Net, [], {"gradient_clip_val": 0.7}),
    "value": (Net, [], {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "own": (Own, [], {}),
    "own through Lightning": (ByLibrary, [], {}),
    "AutoClip": (Net, [lambda: AutoClip(percentile=50)], {}),
    "AGC": (Net, [lambda: AdaptiveGradientClipping(clip=0.02)], {}),
    "AGC and norm": (Net, [lambda: AdaptiveGradientClipping(clip=0.02)], {"gradient_clip_val": 0.01}),
}


def run(mode: str, callback: GradientNorm, parts: tuple[str, ...] = LAYERS, **settings: Any) -> tuple[Any, Witness]:
    net, clippers, clipping = MODES[mode]
    witness = Witness(*parts)
    logged = fit(net(), witness, callback, *(make() for make in clippers), **clipping, **settings)
    return logged, witness


@pytest.mark.parametrize("mode", MODES)
def test_layers_before_and_after_each_kind_of_clipping(mode: str) -> None:
    logged, witness = run(mode, GradientNorm("layer"), accumulate_grad_batches=2)
    assert list(logged.rows) == list(range(6))
    for row, before, after in zip(logged.rows.values(), witness.before, witness.after, strict=True):
        expected = before | {f"{name}_clipped": norm for name, norm in after.items()}
        clipped = any(after[name] < before[name] * (1 - 1e-6) for name in after)
        assert row == pytest.approx(expected | {"clipped_share": float(clipped)}, rel=1e-5)
    assert any(row["total_clipped"] < 0.9 * row["total"] for row in logged.rows.values())


def test_each_parameter() -> None:
    names = tuple(name for name, _ in Net().named_parameters())
    logged, witness = run("norm", GradientNorm("parameter"), names, max_epochs=1)
    for row, before in zip(logged.rows.values(), witness.before, strict=True):
        assert {name: row[name] for name in ("total", *names)} == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("mode", ["norm", "AutoClip"])
@pytest.mark.parametrize("kept", [2, 256])
def test_the_clipped_share_is_of_all_steps_since_the_last_logging(
    mode: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_clipped_share, "_KEPT_STEPS", kept)
    clip = {"gradient_clip_val": 4.3} if mode == "norm" else {}
    clippers = [] if mode == "norm" else [AutoClip(percentile=50, min_history=2)]
    witness = Witness()
    rows = fit(Net(), witness, GradientNorm(), *clippers, log_every_n_steps=4, **clip).rows
    pairs = zip(witness.before, witness.after, strict=True)
    clipped = [after["total"] < before["total"] * (1 - 1e-6) for before, after in pairs]
    shares = [np.mean(clipped[start : start + 4]) for start in (0, 4, 8)]
    assert [row["clipped_share"] for row in rows.values()] == shares
    assert len(set(shares)) > 1


def test_a_share_of_no_steps_is_none() -> None:
    share = ClippedShare()
    share.note(torch.tensor(3.0), 1.0)
    assert share.take() is None
    share.count()
    assert share.take() is None  # the step that was noted is forgotten with the rest


def test_steps_that_the_scaler_skips_do_not_count() -> None:
    """Of four steps the second is skipped, and of the others one is clipped."""
    witness = Witness()
    settings = {"precision": "16-mixed", "max_epochs": 1, "limit_train_batches": 4, "log_every_n_steps": 4}
    row = fit(Net(), Overflow(1), witness, GradientNorm(), gradient_clip_val=4.3, **settings).rows[3]
    counted = [norms["total"] for norms in witness.before if np.isfinite(norms["total"])]
    assert len(counted) == 3
    assert row["clipped_share"] == np.mean([norm > 4.3 for norm in counted])
    assert 0 < row["clipped_share"] < 1


def test_share_and_picture_go_on_after_a_resume(tmp_path: Any) -> None:
    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    settings = {"gradient_clip_val": 4.3, "log_every_n_steps": 5, "max_epochs": 2}
    callbacks = [GradientNorm("layer"), GradientNorm("layer")]
    straight = fit(Net(), callbacks[0], Saving(), **settings).rows
    resumed = fit(Net(), callbacks[1], ckpt_path=tmp_path / "6.ckpt", **settings).rows
    assert list(straight) == [4, 9]
    assert resumed == {9: straight[9]}
    assert 0 < straight[9]["clipped_share"] < 1
    for mine, other in zip(*(callback._timeline.arrays() for callback in callbacks), strict=True):
        assert np.array_equal(mine, other)


class Snapshots(Callback):
    """The weights before and after each optimizer step, as float64."""

    def __init__(self) -> None:
        self.before: list[dict[str, np.ndarray]] = []
        self.after: list[dict[str, np.ndarray]] = []

    @staticmethod
    def weights(module: LightningModule) -> dict[str, np.ndarray]:
        return {name: p.detach().double().numpy().copy() for name, p in module.named_parameters()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.before.append(self.weights(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.after.append(self.weights(pl_module))

    def ratio(self, step: int, begin: str = "") -> float:
        names = [name for name in self.before[step] if name.startswith(begin)]
        moved = sum(np.square(self.after[step][n] - self.before[step][n]).sum() for n in names)
        return np.sqrt(moved / sum(np.square(self.before[step][n]).sum() for n in names))


class Sharp(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


RATIO_NETS: dict[str, Any] = {"adam": Net, "momentum": Sharp, "sam": compose(Sharp, SAMMixin, name="SharpSAM")}


@pytest.mark.parametrize("net", RATIO_NETS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_update_ratios_are_those_of_the_saved_weights(net: str, clip: float | None) -> None:
    seen = Snapshots()
    logged = fit(RATIO_NETS[net](), seen, GradientNorm("layer"), gradient_clip_val=clip, log_every_n_steps=3)
    assert list(logged.ratios) == [2, 5, 8, 11]
    for step, row in logged.ratios.items():
        expected = {"total": seen.ratio(step)} | {layer: seen.ratio(step, layer) for layer in LAYERS}
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_the_update_of_a_skipped_step_is_zero(fused: bool) -> None:
    ratios = fit(Net(fused), Overflow(1), GradientNorm(), precision="16-mixed", max_epochs=1).ratios
    zero = [not any(row.values()) for row in ratios.values()]
    assert zero == [False, True, False, False, False, False]


def test_of_weights_that_are_zero_there_is_no_ratio() -> None:
    net = Net()
    torch.nn.init.zeros_(net.head.bias)
    rows = fit(net, GradientNorm("parameter"), max_epochs=1).ratios
    assert "head.bias" not in rows[0]
    assert "head.bias" in rows[1]
    assert "total" in rows[0]


def test_ratios_of_two_optimizers() -> None:
    seen = Snapshots()
    rows = fit(TwoOptimizers(), seen, GradientNorm(), max_epochs=1).ratios
    for step, row in rows.items():
        expected = {"optimizer0/total": seen.ratio(step, "body"), "optimizer1/total": seen.ratio(step, "head")}
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", [Net, RATIO_NETS["sam"]], ids=["plain", "sam"])
def test_weights_are_bitwise_those_without_it(mode: str, net: type[LightningModule]) -> None:
    host, clippers, clipping = MODES[mode]
    kind = host if net is Net else net
    weights = []
    for watching in ([], [GradientNorm("parameter")]):
        module = kind()
        fit(module, *watching, *(make() for make in clippers), log_every_n_steps=2, **clipping)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("clipping", [AutoClip, AdaptiveGradientClipping])
def test_behind_what_clips_it_warns(clipping: Any) -> None:
    witness = Witness()
    with pytest.warns(UserWarning, match=f"behind {clipping.__name__} in the list .* Put it in front"):
        rows = fit(Net(), clipping(), witness, GradientNorm(), max_epochs=1).rows
    assert [row["total"] for row in rows.values()] == pytest.approx([n["total"] for n in witness.after], rel=1e-5)
    assert "total_clipped" not in rows[0]


def test_the_callbacks_place_among_others_does_not_matter_without_clipping() -> None:
    class Halve(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            for p in pl_module.parameters():
                p.grad.mul_(0.5)

    witness = Witness()
    rows = fit(Net(), GradientNorm(), Halve(), witness, max_epochs=1).rows
    assert [row["total"] for row in rows.values()] == pytest.approx([n["total"] for n in witness.before], rel=1e-5)


def test_the_picture_and_what_is_in_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_norm, "norm_map", norm_map)
    callback = GradientNorm("layer")
    witness = Witness(*LAYERS)
    fit(Net(), witness, callback, log_every_n_steps=3, max_epochs=1)
    steps, names, values = callback._timeline.arrays()
    assert (steps.tolist(), names) == ([2, 5], list(LAYERS))
    expected = [[witness.before[step][layer] for layer in LAYERS] for step in (2, 5)]
    assert values == pytest.approx(np.array(expected), rel=1e-5)
    assert (tmp_path / "gradient_norm.png").stat().st_size > 5000

    (tmp_path / "gradient_norm.png").unlink()
    fit(Net(), GradientNorm(), log_every_n_steps=3, max_epochs=1)
    assert not (tmp_path / "gradient_norm.png").exists()


def test_the_colours_of_the_picture() -> None:
    values = np.array([[1.0, 0.0], [100.0, np.nan], [np.inf, 10.0]])
    mesh = norm_map(np.array([0, 10, 20]), ["a", "b"], values, "title").axes[0].collections[0]
    colours = mesh.to_rgba(mesh.get_array())
    assert mesh.norm.vmin == 1.0
    assert mesh.norm.vmax == 100.0
    assert colours[0, 2].tolist() == [1.0, 0.0, 0.0, 1.0]  # infinite: red
    assert colours[1, 0].tolist() == [0.0, 0.0, 0.0, 1.0]  # zero: black
    assert colours[1, 1, :3].tolist() == pytest.approx([211 / 255] * 3)  # no gradient: light grey


def test_a_diverged_run_leaves_its_picture(tmp_path: Any) -> None:
    class Diverging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 4:
                raise FloatingPointError
            return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 3 else 1.0)

    callback = GradientNorm("layer")
    trainer = Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=pl.loggers.CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    with pytest.raises(FloatingPointError):
        trainer.fit(Diverging(), loader())
    _, _, values = callback._timeline.arrays()
    assert np.isfinite(values[:3]).all()
    assert np.isposinf(values[3]).all()
    assert list(tmp_path.rglob("gradient_norm.png"))


def test_an_error_of_drawing_does_not_hide_the_error_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 2:
                raise FloatingPointError
            return super().training_step(batch, batch_idx)

    def full(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(gradient_norm, "save_picture", full)
    with pytest.warns(UserWarning, match="disk full"), pytest.raises(FloatingPointError):
        fit(Failing(), GradientNorm("layer"))


def test_of_lbfgs_the_whole_step_is_the_update() -> None:
    class Newton(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    seen = Snapshots()
    rows = fit(Newton(), seen, GradientNorm("layer"), max_epochs=1).ratios
    for step, row in rows.items():
        assert row["total"] == pytest.approx(seen.ratio(step), rel=1e-3)
        assert row["head"] == pytest.approx(seen.ratio(step, "head"), rel=1e-3)


def test_value_clipping_in_a_skipped_step_is_not_counted_later() -> None:
    """The logging step is skipped: what was noted there must not pass for the step behind it."""
    settings = {"precision": "16-mixed", "max_epochs": 1, "log_every_n_steps": 2, "gradient_clip_algorithm": "value"}
    rows = fit(Net(), Overflow(1), GradientNorm(), gradient_clip_val=1e4, **settings).rows
    assert "clipped_share" not in rows[1]
    assert rows[3]["clipped_share"] == 0.0  # infinity was clipped in the skipped step
