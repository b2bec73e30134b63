"""One thread everywhere: two are slower on a busy machine, and sums stay in one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import logging

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _quiet_lightning():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
