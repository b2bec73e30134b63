"""GradientHistogram against counts in numpy, of gradients, weights and updates that were kept by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from matplotlib.figure import Figure

from lightning_tuning.callbacks import GradientHistogram, GradientNorm, _gradients, _timeline, gradient_histogram
from lightning_tuning.callbacks._heat_maps import histogram_maps
from lightning_tuning.errors import InvalidValueError
from tests.contract.test_contract import Overflow
from tests.functional.test_magnitude import by_hand

from .test_gradient_norm import Net, Sharded, TwoOptimizers, fit
from .test_gradient_norm_parts import LAYERS, RATIO_NETS

KINDS = ("gradient", "weight", "update")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the time that it takes to draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gradient_histogram, "histogram_maps", lambda *args: Figure(figsize=(1, 1)))


class Keeper(Callback):
    """Counts by hand what there is at each optimizer step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, dict[str, np.ndarray]]] = []
        self._before: dict[str, np.ndarray] = {}

    def counted(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            layer: sum(by_hand(t) for name, t in tensors.items() if name.startswith(layer + "."))  # type: ignore[misc]
            for layer in LAYERS
        }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        named = dict(pl_module.named_parameters())
        self._before = {name: p.detach().numpy().copy() for name, p in named.items()}
        gradients = {name: p.grad.numpy().copy() for name, p in named.items()}
        self.rows.append({"gradient": self.counted(gradients), "weight": self.counted(self._before)})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            now = {name: p.detach().numpy() for name, p in pl_module.named_parameters()}
            self.rows[-1]["update"] = self.counted({name: now[name] - w for name, w in self._before.items()})


def everything(every_n_steps: int = 1, **kwargs: Any) -> GradientHistogram:
    return GradientHistogram(every_n_steps, weights=True, updates=True, **kwargs)


def assert_same(file: Any, keeper: Keeper, steps: list[int]) -> None:
    assert file["steps"].tolist() == steps
    assert file["layers"].tolist() == list(LAYERS)
    assert file["log2"].tolist() == list(range(-48, 17))
    for kind in KINDS:
        expected = np.array([[keeper.rows[step][kind][layer] for layer in LAYERS] for step in steps])
        assert np.array_equal(file[kind], expected[..., :64])
        assert np.array_equal(file[f"{kind}_zeros"], expected[..., 64])
        assert np.array_equal(file[f"{kind}_non_finite"], expected[..., 65])


@pytest.mark.parametrize("net", RATIO_NETS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_counts_are_those_by_hand(net: str, clip: float | None, tmp_path: Path) -> None:
    keeper = Keeper()
    fit(RATIO_NETS[net](), keeper, everything(5), gradient_clip_val=clip)
    assert_same(np.load(tmp_path / "gradient_histogram.npz"), keeper, [0, 5, 10])


def test_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    fit(Net(), everything(5))
    for kind in KINDS:
        assert (tmp_path / f"{kind}_histogram.png").stat().st_size > 5000


def test_what_a_panel_shows() -> None:
    counts = np.zeros((2, 1, 64), dtype=int)
    counts[0, 0, 40], counts[0, 0, 42], counts[1, 0, 41] = 1, 3, 8
    figure = histogram_maps(np.array([0, 10]), ["head"], counts, -48, "title")
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().tolist() == [[0.25, 0], [0, 1.0], [0.75, 0]]
    assert figure.axes[0].get_ylim() == (-8, -5)
    assert figure.axes[0].get_xlim() == (-5, 15)


def test_of_the_accumulated_gradient(tmp_path: Path) -> None:
    keeper = Keeper()
    fit(Net(), keeper, everything(2), accumulate_grad_batches=4)
    assert len(keeper.rows) == 4
    assert_same(np.load(tmp_path / "gradient_histogram.npz"), keeper, [0, 2])


def test_shares_of_zeros_and_of_what_is_not_finite_reach_the_loggers() -> None:
    class Dead(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = 0 * self.head.weight.sum() + super().training_step(batch, batch_idx).detach()
            return loss + (self.head.bias.sum() * float("inf") if batch_idx == 1 else 0 * self.head.bias.sum())

    class Shares(Callback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            metrics = trainer.logged_metrics.items()
            self.rows.append({k.partition("/")[2]: float(v) for k, v in metrics if k.startswith("gradient_hist")})

    shares = Shares()
    fit(Dead(), GradientHistogram(1), shares, max_epochs=1, limit_train_batches=2)
    assert shares.rows[0] == {"zeros": 1.0, "non_finite": 0.0}
    assert shares.rows[1] == {"zeros": pytest.approx(8 / 9), "non_finite": pytest.approx(1 / 9)}


def test_each_parameter_alone_and_nothing_asked_for(tmp_path: Path) -> None:
    fit(Net(), GradientHistogram(100, "parameter"), max_epochs=1)
    file = np.load(tmp_path / "gradient_histogram.npz")
    assert file["layers"].tolist() == [name for name, _ in Net().named_parameters()]
    assert {"weight", "update"}.isdisjoint(file.files)
    assert file["steps"].tolist() == [0]
    assert file["gradient"][0].sum(1) + file["gradient_zeros"][0] == pytest.approx([32, 8, 64, 8, 8, 1])


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_gradients_are_unscaled(fused: bool, tmp_path: Path) -> None:
    counts = []
    for precision in ("32-true", "16-mixed"):
        kwargs = {"precision": precision, "max_epochs": 1, "limit_train_batches": 1}
        fit(Net(fused and precision == "16-mixed"), GradientHistogram(1), **kwargs)
        counts.append(np.load(tmp_path / "gradient_histogram.npz")["gradient"][0].sum(0) @ np.arange(64))
    mean_exponents = np.array(counts) / sum(p.numel() for p in Net().parameters())
    assert abs(mean_exponents[0] - mean_exponents[1]) < 0.2  # the scale is 2 ** 10


@pytest.mark.parametrize("fused", [False, True])
def test_the_update_of_a_skipped_step_is_zero(fused: bool, tmp_path: Path) -> None:
    fit(Net(fused), Overflow(1), everything(), precision="16-mixed", max_epochs=1)
    file = np.load(tmp_path / "gradient_histogram.npz")
    sizes = [40, 72, 9]
    assert file["update_zeros"][1].tolist() == sizes
    assert (file["update_zeros"][[0, 2, 3, 4, 5]].sum(1) < 10).all()
    assert file["gradient_non_finite"][1].any()


def test_two_optimizers_are_both_counted(tmp_path: Path) -> None:
    fit(TwoOptimizers(), everything(3), max_epochs=2)
    file = np.load(tmp_path / "gradient_histogram.npz")
    assert file["steps"].tolist() == [0, 3, 6, 9]
    assert file["layers"].tolist() == list(LAYERS)
    for kind in KINDS:
        total = file[kind].sum(2) + file[f"{kind}_zeros"] + file[f"{kind}_non_finite"]
        assert total.tolist() == [[40, 72, 9]] * 4


@pytest.mark.parametrize("kind", [GradientHistogram, GradientNorm])
def test_long_runs_are_thinned_out(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timeline.Timeline.__init__, "__defaults__", (4,))
    callback = everything() if kind is GradientHistogram else GradientNorm("layer")
    fit(Net(), callback)
    timeline = callback._timelines["update"] if kind is GradientHistogram else callback._timeline
    assert timeline.arrays()[0].tolist() == [0, 4, 8]


def test_a_resumed_run_keeps_what_was_collected(tmp_path: Path) -> None:
    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(Net(), everything(4), Saving())
    straight = dict(np.load(tmp_path / "gradient_histogram.npz"))
    assert torch.load(tmp_path / "6.ckpt", weights_only=True)
    fit(Net(), everything(4), ckpt_path=tmp_path / "6.ckpt")
    resumed = np.load(tmp_path / "gradient_histogram.npz")
    assert straight["steps"].tolist() == [0, 4, 8]
    assert all(np.array_equal(straight[name], resumed[name]) for name in straight)


def test_a_later_training_begins_anew(tmp_path: Path) -> None:
    callback = everything(4)
    for _ in range(2):
        fit(Net(), callback, max_epochs=1)
        assert np.load(tmp_path / "gradient_histogram.npz")["steps"].tolist() == [0, 4]


def test_nothing_is_computed_between(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    bincount = torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda *a, **k: calls.append(1) or bincount(*a, **k))
    fit(Net(), GradientHistogram(5))
    assert len(calls) == 3 * 6  # of twelve steps; six parameters


def test_layers_that_come_later(tmp_path: Path) -> None:
    class Unfreezing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.body.requires_grad_(batch_idx >= 2)
            return super().training_step(batch, batch_idx)

    fit(Unfreezing(), GradientHistogram(2), max_epochs=1)
    file = np.load(tmp_path / "gradient_histogram.npz")
    assert file["layers"].tolist() == ["head", "body.0", "body.2"]
    assert (file["gradient"].sum(2) + file["gradient_zeros"]).tolist() == [[9, 0, 0], [9, 40, 72], [9, 40, 72]]


def test_two_ranks_see_the_reduced_gradient(tmp_path: Path) -> None:
    files = []
    for settings in ({}, {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}):
        module = Sharded() if settings else Net()
        fit(module.double(), everything(2), max_epochs=1, precision="64-true", **settings)
        files.append(dict(np.load(tmp_path / "gradient_histogram.npz")))
    assert files[0]["steps"].tolist() == files[1]["steps"].tolist() == [0, 2, 4]
    for kind in KINDS:
        # Rounding may move a number over a power of two.
        assert np.abs(files[0][kind] - files[1][kind]).sum() <= 4


def test_weights_and_biases_gets_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, dict[str, Any]] = {}

    class Fake(WandbLogger):
        def __init__(self) -> None:
            self.pictures: list[str] = []

        @property
        def experiment(self) -> Any:
            return None

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            sent.setdefault(step or 0, {}).update(metrics)

        def log_image(self, key: str, images: list[Any], **kwargs: Any) -> None:
            self.pictures.append(key)

        log_dir = save_dir = property(lambda self: str(tmp_path))
        name = version = "fake"
        log_hyperparams = save = finalize = after_save_checkpoint = lambda self, *args, **kwargs: None

    logger, keeper = Fake(), Keeper()
    fit(Net(), keeper, everything(3), logger=logger, max_epochs=1)
    assert logger.pictures == ["gradient_histogram", "weight_histogram", "update_histogram"]
    for kind in KINDS:
        for layer in LAYERS:
            histogram = sent[3][f"{kind}_histogram/{layer}"]
            assert isinstance(histogram, wandb.Histogram)
            assert list(histogram.histogram) == keeper.rows[3][kind][layer][:64].tolist()
            assert list(histogram.bins) == list(range(-48, 17))


class Unknown(SingleDeviceStrategy):
    """Stands for a sharding strategy."""


def test_sharded_strategies_and_bad_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_gradients, "DeepSpeedStrategy", Unknown)
    with pytest.warns(UserWarning, match="GradientHistogram collects nothing under Unknown"):
        fit(Net(), GradientHistogram(1), strategy=Unknown("cpu"), max_epochs=1)
    assert not list(tmp_path.rglob("*.npz"))
    with pytest.raises(InvalidValueError, match="every_n_steps is 0"):
        GradientHistogram(0)
    with pytest.raises(InvalidValueError, match="group_by is 'module'"):
        GradientHistogram(group_by="module")  # type: ignore[arg-type]


def test_sparse_gradients(tmp_path: Path) -> None:
    class Embedded(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 4, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            rows = torch.tensor([3, 5, 3, 5])  # twice each: the gradient has to be coalesced
            return torch.nn.functional.mse_loss(self.head(self.body(x + self.table(rows))), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            self.value = pl_module.table.weight.grad.to_dense().double().norm().item()

    seen, keep = Norm(), GradientNorm("layer")
    fit(Embedded(), seen, keep, everything(), max_epochs=1, limit_train_batches=1)
    file = np.load(tmp_path / "gradient_histogram.npz")
    place = file["layers"].tolist().index("table")
    assert file["gradient"][0, place].sum() == 8
    assert file["update"][0, place].sum() == 8
    assert file["update_zeros"][0, place] == 32
    _, names, values = keep._timeline.arrays()
    assert values[0, names.index("table")] == pytest.approx(seen.value, rel=1e-5)


@pytest.mark.parametrize("watching", [everything, lambda: GradientNorm("layer")], ids=["histogram", "norm"])
@pytest.mark.parametrize("case", ["sam", "fp16 fused", "fp16, a step skipped", "clipping and accumulation"])
def test_weights_are_bitwise_those_without_it(watching: Any, case: str) -> None:
    weights = []
    for callbacks in ([], [watching()]):
        module = RATIO_NETS["sam"]() if case == "sam" else Net(fused=case == "fp16 fused")
        settings: dict[str, Any] = {"precision": "16-mixed"} if "fp16" in case else {"gradient_clip_val": 0.5}
        settings |= {"accumulate_grad_batches": 2} if "accumulation" in case else {}
        others = [Overflow(1)] if "skipped" in case else []
        fit(module, *callbacks, *others, **settings)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
