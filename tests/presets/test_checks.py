"""A preset that cannot do here what its name says tells so in one line."""

import pytest
import torch

from lightning_tuning.errors import TuningError
from lightning_tuning.presets import preset
from lightning_tuning.presets.checks import check_runnable


def refused(names, **trainer):
    with pytest.raises(TuningError) as caught:
        check_runnable(names, trainer)
    return str(caught.value)


@pytest.fixture
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("name", ["single_gpu", "fsdp"])
def test_no_cuda_device(name):
    message = f"preset {name} needs a CUDA device, none found; use preset:cpu"
    assert refused(["debug", name], accelerator="cuda", strategy="fsdp") == message
    with pytest.raises(TuningError, match=message):
        preset("bf16", name)
    check_runnable([name], {"accelerator": "cpu", "strategy": "auto"})  # a later configuration chose otherwise


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["single_gpu", "fsdp", "fp16", "fp32"])
def test_a_cuda_device(name):
    assert preset(name)


def test_fsdp_on_a_cpu():
    told = refused(["fsdp"], accelerator="cpu", strategy="fsdp")
    start = "preset fsdp needs a CUDA device, and the accelerator is 'cpu': Lightning's FSDP runs on no other"
    assert told == f"{start}; use preset:ddp"


@pytest.mark.usefixtures("_no_gpu")
def test_fp16_on_a_cpu():
    expected = "preset fp16 needs a GPU: on a CPU Lightning would take bf16 for it; use preset:bf16"
    assert refused(["fp16"], precision="16-mixed") == expected
    assert refused(["fp16"], precision="16-mixed", accelerator="cpu") == expected
    check_runnable(["fp16"], {"precision": "32-true"})


@pytest.mark.usefixtures("gpu")
def test_bf16_on_a_gpu_without_it(monkeypatch):
    expected = (
        "preset bf16 needs a GPU with bf16 (compute capability 8.0 or more), and this is a Tesla T4; use preset:fp16"
    )
    assert refused(["bf16"], precision="bf16-mixed") == expected
    assert refused(["bf16"], precision="bf16-mixed", accelerator="gpu") == expected
    check_runnable(["bf16"], {"precision": "bf16-mixed", "accelerator": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    check_runnable(["bf16"], {"precision": "bf16-mixed"})


@pytest.mark.usefixtures("_no_gpu")
def test_ddp_without_a_gpu_says_so(told):
    preset("ddp", "bf16")
    assert told.messages == ["preset ddp found no GPU and runs one process on the CPU; --trainer.devices=2 runs two"]
    told.clear()
    preset("ddp", devices=2)
    preset("cpu")
    assert told.messages == []


@pytest.mark.usefixtures("gpu")
def test_ddp_with_a_gpu_says_nothing(told):
    preset("ddp")
    assert told.messages == []
