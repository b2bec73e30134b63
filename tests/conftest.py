"""One thread everywhere: two are slower on a busy machine, and sums stay in one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import contextlib
import gc
import logging
import resource

import pytest
import torch
from lightning_utilities.core import rank_zero

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A test that lets no file grow, as a full disk does, stops no report of pytest's, which may go into a file."""
    try:
        return (yield)
    finally:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _quiet_lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def told(caplog, monkeypatch):
    """The messages of ``rank_zero_info``, whichever of Lightning's packages was imported last and speaks for all."""
    monkeypatch.setattr(rank_zero.log, "propagate", False)
    rank_zero.log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger=rank_zero.log.name):
        yield caplog
    rank_zero.log.removeHandler(caplog.handler)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An offline W&B that writes below ``tmp_path`` alone and leaves no process behind."""
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb
    from wandb.sdk.lib.module import unset_globals

    wandb.teardown()  # it would keep the environment of an earlier test
    yield tmp_path
    with contextlib.suppress(Exception):  # a test may have killed its process
        wandb.teardown()
    unset_globals()


def pytest_collection_finish():
    """Keep the garbage collector away from the thousands of collected tests: it would go through them again and again,
    and copy their memory in each forked process."""
    gc.collect()
    gc.freeze()
