"""Weight initialisation shared by the named networks."""

from __future__ import annotations

from torch import nn


def init_weights(network: nn.Module, head: nn.Linear) -> None:
    """Draw He-normal weights (He et al., 2015) in place and set every bias to zero.

    Convolutions keep the variance of the gradients (fan out), hidden linear layers that of the activations (fan in);
    the head has gain 1, as no ReLU follows it. Batch norm keeps torch's weight 1 and bias 0.

    Args:
        network: The network to initialise.
        head: Its last layer.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear" if module is head else "relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
