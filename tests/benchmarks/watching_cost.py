"""What the parts of the package that only watch add to a Trainer's step.

    OMP_NUM_THREADS=1 python tests/benchmarks/watching_cost.py [--rounds 15] [--only norm terms all validation]

``norm``: GradientNorm beside the Trainer's clipping, on three networks, against the recipe of Lightning's documentation
(``grad_norm`` and ``log_dict`` in each step). ``terms``: 20 diagnostics through ``log_term`` and through ``self.log``.
``all``: every callback that watches, at its default interval and one at a time. ``validation``: RobustAccuracy in
epochs in which it is not due. A logger takes the values every 50 steps and does nothing with them. See ``turns.py`` for
how it is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import grad_norm
from step_cost import quiet
from torch import Tensor, nn
from turns import Variant, seconds_by_turns, show

from lightning_tuning import ConfidencePenaltyMixin, TuningMixin, compose
from lightning_tuning.callbacks import (
    ActivationHealth,
    ExactResume,
    GradientHistogram,
    GradientNorm,
    MonitorCheck,
    RobustAccuracy,
    TermGradients,
)
from lightning_tuning.modules.networks import build_network

CLIP = {"gradient_clip_val": 1.0}


def deep() -> nn.Module:
    """31 linear layers: 62 tensors."""
    hidden = [part for _ in range(29) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *hidden, nn.Linear(64, 10))


digits_mlp, cnn = (partial(build_network, name, image_size=8) for name in ("mlp", "cnn"))
NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits MLP": digits_mlp, "62 tensors": deep}
STEPS = 100  # of a turn: all that is due at intervals falls into it
BATCH = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))


class Host(LightningModule):
    """Logs nothing by itself."""

    def __init__(self, network: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.network = network()
        self.num_classes = 10

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.compute_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.compute_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class ByRecipe(Host):
    """Norms as the documentation of Lightning has them logged."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log_dict(grad_norm(self.network, norm_type=2))


class Logs(Host):
    """20 diagnostics through ``self.log``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for i in range(20):
            self.log(f"train/value{i}", loss)
        return loss


class Terms(TuningMixin):
    """20 diagnostics through ``log_term``."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for i in range(20):
            self.log_term(f"value{i}", loss)
        return loss


class TermHost(Terms, Host):
    pass


Penalized = compose(Host, ConfidencePenaltyMixin, name="Penalized")


def norm(rounds: int) -> None:
    for name, network in (NETWORKS | {"cnn": cnn}).items():
        variants = {
            "clipping by norm": Variant(partial(Host, network), (), CLIP),
            "a callback that does nothing": Variant(partial(Host, network), [Callback()], CLIP),
            "GradientNorm": Variant(partial(Host, network), [GradientNorm()], CLIP),
            "GradientNorm, layers": Variant(partial(Host, network), [GradientNorm("layer")], CLIP),
            "the documented recipe": Variant(partial(ByRecipe, network), (), CLIP),
        }
        show(f"GradientNorm, {name}", seconds_by_turns(variants, BATCH, steps=STEPS, rounds=rounds))
    bare, by_value = {}, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    for title, settings in (("no clipping", bare), ("clipping by value", by_value)):
        variants = {
            title: Variant(partial(Host, deep), (), settings),
            "GradientNorm": Variant(partial(Host, deep), [GradientNorm()], settings),
        }
        show(f"GradientNorm, 62 tensors, {title}", seconds_by_turns(variants, BATCH, steps=STEPS, rounds=rounds))


def terms(rounds: int) -> None:
    variants = {
        "no diagnostics": Variant(partial(Host, digits_mlp)),
        "20 through log_term": Variant(partial(TermHost, digits_mlp)),
        "20 through self.log": Variant(partial(Logs, digits_mlp)),
    }
    seconds = seconds_by_turns(variants, BATCH, steps=STEPS, rounds=rounds)
    show("diagnostics, digits MLP", seconds)
    bare, buffered, logged = seconds.values()
    shares = [(b - a) / (c - a) for a, b, c in zip(bare, buffered, logged, strict=True)]
    low, median, high = statistics.quantiles(shares, n=4)
    print(f"  log_term costs {median:.3f} of what self.log costs (quartiles {low:.3f} to {high:.3f})")


WATCHERS = (GradientNorm, GradientHistogram, TermGradients, ActivationHealth, RobustAccuracy, MonitorCheck)


def everything(rounds: int) -> None:
    for name, network in NETWORKS.items():
        make = partial(Penalized, network, confidence_penalty_weight=0.1)
        variants = {"clipping by norm, one term": Variant(make, (), CLIP)}
        variants |= {kind.__name__: Variant(make, [kind()], CLIP) for kind in (Callback, ExactResume, *WATCHERS)}
        variants["all but the first three"] = Variant(make, [kind() for kind in WATCHERS], CLIP)
        show(f"all that watches, {name}", seconds_by_turns(variants, BATCH, steps=STEPS, rounds=rounds))


def validation(rounds: int) -> None:
    variants = {
        "bare": Variant(partial(Host, digits_mlp)),
        "RobustAccuracy, not due": Variant(partial(Host, digits_mlp), [RobustAccuracy(every_n_epochs=10**6)]),
    }
    seconds = seconds_by_turns(variants, BATCH, steps=STEPS, rounds=rounds, validation=50)
    show("a training step and a batch of validation, digits MLP", seconds)


PARTS = {"norm": norm, "terms": terms, "all": everything, "validation": validation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    quiet()
    for part in args.only:
        PARTS[part](args.rounds)


if __name__ == "__main__":
    main()
