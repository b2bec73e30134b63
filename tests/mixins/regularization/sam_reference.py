"""SAM as a plain PyTorch loop."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn


def reference(network, data, rho, lr=0.1, momentum=0.9, clip=None, window=1, share=None):
    """Foret et al., algorithm 1, as a plain PyTorch loop: the second pass repeats the first with the same dropout masks
    and leaves no trace in the batch norms. Returns the loss of each first pass and the final random state."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    weights = [p for p in network.parameters() if p.requires_grad]
    losses = []
    for start in range(0, len(data), window):
        states, part = [], data[start : start + window]
        optimizer.zero_grad()
        for x, ids in part:
            states.append(torch.get_rng_state())
            loss = F.cross_entropy(network(x), ids)
            losses.append(loss.item())
            (loss / (share or window)).backward()
        kept = copy.deepcopy(network.state_dict())
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in weights]), p=2)
        scale = rho / (norm + 1e-12)
        with torch.no_grad():
            for p in weights:
                p.add_(p.grad * scale)
        optimizer.zero_grad()
        for (x, ids), state in zip(part, states, strict=True):
            torch.set_rng_state(state)
            (F.cross_entropy(network(x), ids) / (share or window)).backward()
        network.load_state_dict(kept)
        if clip is not None:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
    return losses
