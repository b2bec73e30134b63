"""Damaged and malicious checkpoints and a server for them, and whether two runs ended alike."""

import http.server
import os
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from tests.contract.nets import assert_equal_state


def flip(path, record="data/0", offset=0):
    """Change one bit of a record of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        (info,) = [i for i in archive.infolist() if i.filename.endswith(f"/{record}")]
    content = bytearray(path.read_bytes())
    name, extra = (
        int.from_bytes(content[info.header_offset + at : info.header_offset + at + 2], "little") for at in (26, 28)
    )
    content[info.header_offset + 30 + name + extra + offset] ^= 1
    path.write_bytes(content)


def truncate(path, size=100):
    """Cut bytes off the end."""
    path.write_bytes(path.read_bytes()[:-size])


def last_of(runs):
    """The newest ``last.ckpt`` of the runs of a name, given by their folder."""
    path = max(Path(runs).glob("*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
    return torch.load(path, weights_only=True)


def assert_the_same_end(ours, theirs, steps):
    """That the runs of two names ended after so many steps with the same weights and optimizer, bit for bit."""
    a, b = last_of(ours), last_of(theirs)
    assert a["global_step"] == b["global_step"] == steps
    assert_equal_state(a["state_dict"], b["state_dict"])
    assert_equal_state(a["optimizer_states"][0], b["optimizer_states"][0])


class Payload:
    """Writes a file when it is unpickled by a loader that runs code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    """The address of a folder on a server of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
