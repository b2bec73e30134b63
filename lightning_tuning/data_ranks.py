"""Over how many processes a run's samples are shared out."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy


def data_ranks(trainer: Trainer) -> tuple[int, int]:
    """How many processes, or groups of them, train on samples of their own, and which of these this process is in.

    Each process does, but where ``ModelParallelStrategy`` splits tensors over some: these train on the same batches.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy) and strategy._device_mesh is not None:
        shared = strategy.distributed_sampler_kwargs
        return shared["num_replicas"], shared["rank"]
    return trainer.world_size, trainer.global_rank
