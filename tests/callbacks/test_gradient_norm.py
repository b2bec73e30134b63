"""GradientNorm against float64 sums, and against runs without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.callbacks import GradientNorm, _gradients, _norms
from lightning_tuning.errors import InvalidValueError


class Recorder(Logger):
    """Keeps what it is given, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self.ratios: dict[int, dict[str, float]] = {}

    name = version = "recorder"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for kind, rows in (("grad_norm/", self.rows), ("update_ratio/", self.ratios)):
            if part := {k.removeprefix(kind): v for k, v in metrics.items() if k.startswith(kind)}:
                rows[step] = part


class Witness(Callback):
    """Takes the gradients' norms in float64 numpy, of every step, before clipping and after the step."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts or ("body", "head")
        self.before: list[dict[str, float]] = []
        self.after: list[dict[str, float]] = []

    def norms(self, module: LightningModule) -> dict[str, float]:
        squares = {
            n: np.square(p.grad.double().numpy()).sum() for n, p in module.named_parameters() if p.grad is not None
        }
        norms = {"total": np.sqrt(sum(squares.values()))}
        for name in self.parts:
            norms[name] = np.sqrt(sum(s for n, s in squares.items() if n.startswith(name)))
        return norms

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.before.append(self.norms(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.after.append(self.norms(pl_module))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Net(LightningModule):
    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.fused = fused

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.head(self.body(x)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": self.body.parameters(), "name": "body"}, {"params": self.head.parameters()}]
        return torch.optim.Adam(groups, lr=0.01, fused=self.fused)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 4, generator=generator), 3 * torch.randn(24, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def fit(
    module: LightningModule, *callbacks: Callback, logger: Any = None, ckpt_path: Any = None, **settings: Any
) -> Recorder:
    recorder = Recorder()
    settings = {"log_every_n_steps": 1, "accelerator": "cpu", "max_epochs": 2} | settings
    if settings.get("precision") == "16-mixed":  # the Trainer itself would turn it into bf16 on a CPU
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # the default scale overflows here in the first step
        settings["plugins"] = MixedPrecision(settings.pop("precision"), "cpu", scaler)
    trainer = Trainer(
        callbacks=list(callbacks),
        logger=recorder if logger is None else logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    assert not {"clip_grad_by_norm", "_clip_gradients"} & vars(trainer.precision_plugin).keys()
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)
    return recorder


CLIPPING = {
    "none": {},
    "norm": {"gradient_clip_val": 0.7},
    "value": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
}


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_norms_equal_float64_sums(clipping: str, accumulate: int) -> None:
    witness = Witness()
    logged = fit(Net(), witness, GradientNorm(), accumulate_grad_batches=accumulate, **CLIPPING[clipping]).rows
    assert list(logged) == list(range(12 if accumulate == 1 else 4)) == list(range(len(witness.before)))
    for step, row in logged.items():
        expected = witness.before[step] | {"group1": witness.before[step]["head"]}
        if clipping != "none":
            after = witness.after[step] | {"group1": witness.after[step]["head"]}
            expected |= {f"{name}_clipped": value for name, value in after.items()}
            expected["clipped_share"] = float(after["total"] < expected["total"])
        assert row == pytest.approx({k: v for k, v in expected.items() if "head" not in k}, rel=1e-5)
    if clipping != "none":
        assert any(row["total_clipped"] < 0.9 * row["total"] for row in logged.values())


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_weights_are_bitwise_those_of_a_run_without_it(clipping: str, precision: str) -> None:
    bare, observed = Net(), Net()
    fit(bare, precision=precision, **CLIPPING[clipping])
    fit(observed, GradientNorm(), precision=precision, log_every_n_steps=2, **CLIPPING[clipping])
    for a, b in zip(bare.state_dict().values(), observed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_clipping_is_bitwise_stock_for_mixed_dtypes_and_missing_gradients() -> None:
    def parameters() -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(3)
        result = []
        for i in range(40):
            p = nn.Parameter(torch.randn(1 + i, 7, generator=generator).to([torch.float32, torch.float64][i % 3 == 1]))
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype) if i % 5 else None
            result.append(p)
        return result

    stock, ours = parameters(), parameters()
    total = torch.nn.utils.clip_grad_norm_(stock, 1.0)
    norms = _norms.Norms(ours)
    torch.nn.utils.clip_grads_with_norm_(ours, 1.0, norms.total)
    assert torch.equal(norms.total, total)
    assert all(a.grad is None or torch.equal(a.grad, b.grad) for a, b in zip(stock, ours, strict=True))
    for parameter, norm in zip(norms.parameters, norms.each.tolist(), strict=True):
        assert norm == pytest.approx(np.linalg.norm(parameter.grad.numpy()) * norms.total.item(), rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_norms_are_unscaled(fused: bool) -> None:
    plain = fit(Net(), GradientNorm(), max_epochs=1, limit_train_batches=1).rows[0]
    half = fit(Net(fused), GradientNorm(), max_epochs=1, limit_train_batches=1, precision="16-mixed").rows[0]
    assert half == pytest.approx(plain, rel=5e-3)


def test_fp16_norms_of_the_clipping_are_unscaled() -> None:
    settings = {"max_epochs": 1, "limit_train_batches": 1, "gradient_clip_val": 0.7}
    plain = fit(Net(), GradientNorm(), **settings).rows[0]
    half = fit(Net(), GradientNorm(), precision="16-mixed", **settings).rows[0]
    assert half == pytest.approx(plain, rel=5e-3)
    assert half["total_clipped"] == pytest.approx(0.7, rel=1e-4)


def test_fp16_norms_of_a_clipping_hook_that_passes_the_wrapped_optimizer() -> None:
    class Own(Net):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.clip_gradients(self.optimizers(), 0.7, "norm")

    settings = {"max_epochs": 1, "limit_train_batches": 1}
    plain = fit(Own(), GradientNorm(), **settings).rows[0]
    half = fit(Own(), GradientNorm(), precision="16-mixed", **settings).rows[0]
    assert half == pytest.approx(plain, rel=5e-3)
    assert half["total_clipped"] == pytest.approx(0.7, rel=1e-4)


def test_clipping_never_enlarges() -> None:
    for row in fit(Net(), GradientNorm(), gradient_clip_val=100.0).rows.values():
        assert row["total_clipped"] == row["total"] < 100


def test_groups_by_module_and_depth() -> None:
    witness = Witness()
    row = fit(Net(), witness, GradientNorm(group_by="module"), max_epochs=1, limit_train_batches=1).rows[0]
    assert row == pytest.approx(witness.before[0], rel=1e-5)
    deep = fit(Net(), GradientNorm("module", depth=2), max_epochs=1, limit_train_batches=1).rows[0]
    assert set(deep) == {"total", "body.0", "body.2", "head"}
    assert np.hypot(deep["body.0"], deep["body.2"]) == pytest.approx(row["body"], rel=1e-5)


@pytest.mark.parametrize(
    ("clipping", "passes"), [("none", 3), ("norm", 0), ("value", 6)], ids=["none", "norm", "value"]
)
@pytest.mark.parametrize("ratio", [False, True])
def test_no_pass_of_its_own_between_logging_steps(
    clipping: str, passes: int, ratio: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    foreach_norm = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda *a, **k: calls.append(1) or foreach_norm(*a, **k))
    logged = fit(Net(), GradientNorm(update_ratio=ratio), log_every_n_steps=4, **CLIPPING[clipping])
    assert list(logged.rows) == [3, 7, 11]
    assert list(logged.ratios) == ([3, 7, 11] if ratio else [])
    clipped = 12 if clipping == "norm" else 0  # what clipping by norm does anyway
    assert len(calls) == passes + clipped + 3 * 2 * ratio


def test_without_a_logger_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_foreach_norm", None)
    fit(Net(), GradientNorm(), logger=False)


class Freezing(Net):
    """Gives the head no gradient in odd batches, and a new parameter group from batch 3 on."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.head.requires_grad_(batch_idx % 2 == 0)
        if batch_idx == 3:
            self.late = nn.Linear(1, 1)
            self.optimizers(use_pl_optimizer=False).add_param_group({"params": self.late.parameters(), "name": "late"})
        loss = super().training_step(batch, batch_idx)
        return loss + (self.late.weight.square().sum() if batch_idx >= 3 else 0.0)


@pytest.mark.parametrize("clipping", ["none", "norm"])
def test_parameters_that_lose_or_get_a_gradient(clipping: str) -> None:
    witness = Witness()
    rows = fit(Freezing(), witness, GradientNorm(), max_epochs=1, **CLIPPING[clipping]).rows
    assert [{name for name in row if "total" not in name and "_" not in name} for row in rows.values()] == [
        {"body", "group1"},
        set(),
        {"body", "group1"},
        {"body", "late"},
        {"body", "group1", "late"},
        {"body", "late"},
    ]
    assert [row["total"] for row in rows.values()] == pytest.approx([n["total"] for n in witness.before], rel=1e-5)


@pytest.mark.parametrize("clipping", CLIPPING)
def test_non_finite_is_reported(clipping: str) -> None:
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * float("nan")

    row = fit(Broken(), GradientNorm(), max_epochs=1, limit_train_batches=1, **CLIPPING[clipping]).rows[0]
    assert np.isnan(row["total"])
    assert np.isnan(row["body"])


class TwoOptimizers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.body, self.head)]


def test_manual_optimization_with_two_optimizers() -> None:
    witness = Witness()
    rows = fit(TwoOptimizers(), GradientNorm(), witness, max_epochs=1).rows
    assert len(rows) == 6
    for step, row in rows.items():
        assert set(row) == {"optimizer0/total", "optimizer1/total"}
        assert row["optimizer0/total"] == pytest.approx(witness.before[2 * step]["body"], rel=1e-5)
        assert row["optimizer1/total"] == pytest.approx(witness.before[2 * step + 1]["head"], rel=1e-5)
        assert max(row.values()) <= 0.5001


def test_own_clipping_hook() -> None:
    class Own(Net):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    witness = Witness()
    rows = fit(Own(), witness, GradientNorm(), max_epochs=1, gradient_clip_val=0.7).rows
    for step, row in rows.items():
        assert row["total"] == pytest.approx(witness.before[step]["total"], rel=1e-5)
        assert row["total_clipped"] == pytest.approx(witness.after[step]["total"], rel=1e-5)
        assert row["clipped_share"] == 1.0
        assert row["total_clipped"] < 0.11


class Unknown(SingleDeviceStrategy):
    """Stands for a sharding strategy."""


def test_sharded_strategy_warns_once_and_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gradients, "DeepSpeedStrategy", Unknown)
    bare, observed = Net(), Net()
    fit(bare, gradient_clip_val=0.7)
    with pytest.warns(UserWarning, match="logs nothing under Unknown") as warned:
        rows = fit(observed, GradientNorm(), gradient_clip_val=0.7, strategy=Unknown("cpu")).rows
    assert sum("GradientNorm" in str(w.message) for w in warned) == 1
    assert rows == {}
    assert torch.equal(bare.head.weight, observed.head.weight)


def test_clipping_is_put_back_after_an_exception() -> None:
    class Failing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise ZeroDivisionError

    trainer = Trainer(
        max_epochs=1, callbacks=[GradientNorm()], logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(), loader())
    assert "clip_grad_by_norm" not in vars(trainer.precision_plugin)


def test_bad_arguments_and_two_callbacks() -> None:
    with pytest.raises(InvalidValueError, match="group_by is 'layers'; did you mean 'layer'"):
        GradientNorm(group_by="layers")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="depth is 0"):
        GradientNorm(depth=0)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `GradientNorm`"):
        fit(Net(), GradientNorm(), GradientNorm("module"))


class Dump(Callback):
    """Hands the rows of rank 0 back through a file: the ranks are processes of their own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(trainer.logger.rows, self.path)


class Sharded(Net):
    """Each rank takes its share of the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        share = slice(self.global_rank, None, self.trainer.world_size)
        return super().training_step([part[share] for part in batch], batch_idx)


@pytest.mark.parametrize("clipping", ["none", "norm"])
def test_two_ranks_equal_one_process_on_the_joined_batch(clipping: str, tmp_path: Any) -> None:
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, **CLIPPING[clipping]}
    one = fit(Net(), GradientNorm(), **settings).rows
    path = tmp_path / "rows.pt"
    settings |= {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    fit(Sharded(), GradientNorm(), Dump(str(path)), **settings)
    two = torch.load(path)
    assert list(two) == list(one) == [0, 1, 2]
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4)
