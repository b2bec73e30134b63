"""Two nodes on one machine: network namespaces joined by a cable or, where not allowed, groups of processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback

from .test_process import environment

_MARK = "LIGHTNING_TUNING_TEST_NODE"


class Fate(Callback):
    """Signals the node of one rank, its torchrun and itself, in the batch that the environment names."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rank, place, signum = map(int, os.environ.get("FATE", "-1,-1,9").split(","))
        if (trainer.global_rank, trainer.fit_loop.epoch_loop.total_batch_idx) == (rank, place):
            os.kill(os.getppid(), signum)
            os.kill(os.getpid(), signum)


class Digest(Callback):
    """Writes down, on each rank, what its whole state hashes to at the end."""

    def on_train_end(self, trainer, pl_module):
        state = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            state.update(name.encode() + value.cpu().numpy().tobytes())
        Path(trainer.log_dir, f"rank{trainer.global_rank}.sha256").write_text(state.hexdigest())


class Ended(NamedTuple):
    """The exit code, None for a node that had to be killed, and what was printed."""

    code: int | None
    output: str


class Nodes:
    """Runs the command on two nodes with torchrun.

    Attributes:
        separate: Whether the nodes are network namespaces.
    """

    def __init__(self, folder: Path, names: tuple[str, str] | None) -> None:
        self.folder, self.names = folder, names
        self.separate = names is not None
        self._mark = uuid.uuid4().hex
        self._started: list[subprocess.Popen] = []

    def run(self, *args: str, count: int = 2, fate: str = "", limit: float = 150, grace: float = 60) -> list[Ended]:
        """Run the command with two processes, and leave nothing behind.

        Args:
            *args: The command's arguments.
            count: Nodes, 1 or 2.
            fate: What happens to a node: the rank that it has, the batch, the signal.
            limit: Seconds until the first node has to end.
            grace: Seconds after the first for the others.

        Returns:
            How each node ended.
        """
        port = 29500 if self.separate else _free_port()
        try:
            started = [self._start(node, count, port, fate, args) for node in range(count)]
            end = time.monotonic() + limit
            while all(process.poll() is None for process in started) and time.monotonic() < end:
                time.sleep(0.1)
            end = time.monotonic() + grace
            while any(process.poll() is None for process in started) and time.monotonic() < end:
                time.sleep(0.1)
            codes = [process.returncode for process in started]
        finally:
            self.end()
        return [Ended(code, (self.folder / f"node{node}.log").read_text()) for node, code in enumerate(codes)]

    def _start(self, node: int, count: int, port: int, fate: str, args: tuple[str, ...]) -> subprocess.Popen:
        within = ["ip", "netns", "exec", self.names[node]] if self.names else []
        address, interface = ("10.77.0.1", "cable") if self.names else ("127.0.0.1", "lo")
        launch = [f"--nnodes={count}", f"--nproc-per-node={2 // count}", f"--node-rank={node}"]
        meet = [f"--master-addr={address}", f"--master-port={port}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *launch, *meet, "-m", "lightning_tuning"]
        own = {_MARK: self._mark, "GLOO_SOCKET_IFNAME": interface, "FATE": fate or "-1,-1,9"}
        with open(self.folder / f"node{node}.log", "w") as log:
            process = subprocess.Popen(
                [*within, *torchrun, *args],
                cwd=self.folder,
                env=environment() | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill what is left of this test's processes: torchrun's workers have sessions of their own."""
        end = time.monotonic() + 10
        while (left := list(self._left())) and time.monotonic() < end:  # one may have been starting another
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self._started:
            process.kill()
            process.wait()
        self._started.clear()

    def _left(self) -> Iterator[int]:
        mark = f"{_MARK}={self._mark}".encode()
        for file in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in file.read_bytes().split(b"\0"):
                    yield int(file.parent.name)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """Two nodes with one folder; nothing of them is left afterwards."""
    names = (f"tuning-{os.getpid()}-0", f"tuning-{os.getpid()}-1")
    made = _wire(names)
    nodes = Nodes(folder, names if made else None)
    try:
        yield nodes
    finally:
        nodes.end()
        if made:
            _unwire(names)


def _wire(names: tuple[str, str]) -> bool:
    """Make the namespaces and a cable between them; False if that is not allowed."""
    ends = [("cable", "netns", name) for name in names]
    commands = [["netns", "add", name] for name in names]
    commands.append(["link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]])
    for number, name in enumerate(names, start=1):
        commands.append(["-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable"])
        commands += [["-n", name, "link", "set", link, "up"] for link in ("lo", "cable")]
    try:
        for command in commands:
            subprocess.run(["ip", *command], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        _unwire(names)
        return False
    return True


def _unwire(names: tuple[str, str]) -> None:
    for name in names:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=20)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
