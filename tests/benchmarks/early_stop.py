"""What EarlyStop costs: the copy of the weights at each validation, beside a training step and a validation batch.

``python -m tests.benchmarks.early_stop``: process CPU time, one thread, medians of interleaved rounds.
"""

from __future__ import annotations

import statistics
import time

import torch

from lightning_tuning import ImageClassifier
from lightning_tuning.callbacks._measured_weights import snapshot

ROUNDS, BATCH = 9, 64


def timed(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    for network in ("cnn", "resnet18"):
        net = ImageClassifier(num_classes=10, network=network, in_channels=3, image_size=32)
        x, target = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def step(net=net, optimizer=optimizer, x=x, target=target) -> None:
            net.train()
            optimizer.zero_grad()
            net.compute_loss(net(x), target).backward()
            optimizer.step()

        def validate(net=net, x=x) -> None:
            net.eval()
            with torch.no_grad():
                net(x)

        parts = {"snapshot": lambda net=net: snapshot(net), "step": step, "validation batch": validate}
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(ROUNDS):
            for name, part in parts.items():
                times[name].append(timed(part))
        medians = {name: statistics.median(values) for name, values in times.items()}
        shares = {name: medians["snapshot"] / medians[name] for name in ("step", "validation batch")}
        told = ", ".join(f"{share:.4f} of a {name}" for name, share in shares.items())
        print(f"{network}: a snapshot takes {1000 * medians['snapshot']:.2f} ms, {told}")


if __name__ == "__main__":
    main()
