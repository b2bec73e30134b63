"""The processes that torchrun or srun has started, as far as the environment tells."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning_tuning.errors import InvalidValueError


@dataclass(frozen=True)
class Launched:
    """What a launcher has started.

    Attributes:
        by: The launcher's name.
        devices: Processes on each node.
        num_nodes: Nodes.
    """

    by: str
    devices: int
    num_nodes: int

    @property
    def counts(self) -> dict[str, int]:
        """The two numbers under the names of the Trainer's arguments."""
        return {"devices": self.devices, "num_nodes": self.num_nodes}


def launched() -> Launched | None:
    """What started this process among others; None if it is on its own, or Lightning will start the others.

    Raises:
        InvalidValueError: SLURM was not told the tasks of each node in the one way that Lightning reads, or the nodes
            have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _even("torchrun", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "WORLD_SIZE")
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    tasks = _number("SLURM_NTASKS")
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise InvalidValueError(f"SLURM started {tasks} tasks: give it --ntasks-per-node, which Lightning asks for.")
    return _even("srun", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_NTASKS")


def _even(by: str, each: str, nodes: str, total: str) -> Launched:
    """What the variables of a launcher tell, if they agree: Lightning would wait for processes that do not exist."""
    started, count = Launched(by, _number(each), _number(nodes)), os.environ.get(total)
    if count == "1":  # as srun starts it within a job of more tasks
        return Launched(by, 1, 1)
    if count is not None and int(count) != started.devices * started.num_nodes:
        raise InvalidValueError(
            f"{by} has started {count} processes, which are not {started.devices} on each of {started.num_nodes} nodes "
            f"({each}, {nodes}): Lightning needs as many on each node."
        )
    return started


def _number(variable: str) -> int:
    return int(os.environ.get(variable, 1))
