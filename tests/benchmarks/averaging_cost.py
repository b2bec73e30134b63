"""Cost of an average's update and of its exchange with the weights, against the memory's bandwidth and other averages.

    OMP_NUM_THREADS=1 python tests/benchmarks/averaging_cost.py [--rounds 25]

Each round runs every variant once (small modules: several times), one after the other, in process CPU time; printed are
the median and the quartiles of the ratio to the round's floor. The floor of an update is the same arithmetic on one
flat tensor of as many numbers; the floor of an exchange is ours. Modules have the shapes of ResNet-50 and ViT-B/16.
timm is compared where it is installed; of it one file is loaded.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_tuning.functional import WeightAverage, trained_parts

DECAY = 0.999


def resnet50() -> nn.Module:
    """All layers of a ResNet-50, 25.6 million weights in 161 tensors; it cannot be called."""
    layers: list[nn.Module] = [*convolution(3, 64, 7)]
    width = 64
    for blocks, narrow in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            layers += [*convolution(width, narrow, 1), *convolution(narrow, narrow, 3)]
            layers += convolution(narrow, 4 * narrow, 1)
            layers += convolution(width, 4 * narrow, 1) if block == 0 else []
            width = 4 * narrow
    return nn.Sequential(*layers, nn.Linear(width, 1000))


def convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, bias=False), nn.BatchNorm2d(outputs)]


def vit_b() -> nn.Module:
    """All layers of a ViT-B/16, 86 million weights."""
    blocks = [nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True) for _ in range(12)]
    tokens = nn.ParameterList([torch.zeros(1, 197, 768), torch.zeros(1, 1, 768)])
    return nn.Sequential(nn.Conv2d(3, 768, 16, 16), tokens, *blocks, nn.LayerNorm(768), nn.Linear(768, 1000))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def timm_average(net: nn.Module) -> Callable[[], Any] | None:
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("model_ema", Path(package.origin).parent / "utils" / "model_ema.py")
    assert spec is not None
    assert spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    average = file.ModelEmaV3(net, decay=DECAY)
    return lambda: average.update(net)


def lightning_average(net: nn.Module) -> EMAWeightAveraging:
    callback = EMAWeightAveraging(decay=DECAY)
    callback._average_model = AveragedModel(net, use_buffers=True, **callback._kwargs)
    return callback


def updates(net: nn.Module) -> dict[str, Callable[[], Any]]:
    numbers = sum(p.numel() for p in net.parameters())
    flat, other = torch.randn(numbers), torch.randn(numbers)
    ours = WeightAverage(trained_parts(net))
    multi = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    lightning = lightning_average(net)._average_model
    found = {
        "floor": lambda: flat.lerp_(other, 1 - DECAY),
        "WeightEMA": lambda: ours.update(DECAY),
        "timm": timm_average(net),
        "torch, multi_avg_fn": lambda: multi.update_parameters(net),
        "Lightning": lambda: lightning.update_parameters(net),
    }
    return {name: run for name, run in found.items() if run is not None}


def exchanges(net: nn.Module) -> dict[str, Callable[[], Any]]:
    ours, lightning = WeightAverage(trained_parts(net)), lightning_average(net)

    def there_and_back() -> None:
        ours.swap_in()
        ours.swap_out()

    def lightnings() -> None:
        lightning._swap_models(net)
        lightning._swap_models(net)

    return {"WeightEMA": there_and_back, "Lightning": lightnings}


def compare(title: str, variants: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for turn in range(rounds + 2):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            start = time.process_time()
            for _ in range(repeats):
                variants[name]()
            seconds[name].append((time.process_time() - start) / repeats)
    seconds = {name: values[2:] for name, values in seconds.items()}
    base, *_ = seconds.values()
    print(f"\n{title}")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(values, base, strict=True)], n=4)
        print(f"  {name:22s} {middle:7.2f} ({low:.2f} to {high:.2f})   {1e3 * statistics.median(values):9.3f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for build, repeats in ((resnet50, 1), (vit_b, 1), (mlp, 200)):
        net = build()
        name = f"{build.__name__} ({sum(p.numel() for p in net.parameters()) / 1e6:.1f} million weights)"
        compare(f"{name}: update", updates(net), rounds, repeats)
        compare(f"{name}: exchange and back", exchanges(copy.deepcopy(net)), rounds, 10 if repeats == 1 else repeats)
