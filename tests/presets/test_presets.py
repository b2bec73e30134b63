import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import lightning_tuning.presets
from lightning_tuning.errors import InvalidValueError, TuningError
from lightning_tuning.presets import check_runnable, preset, preset_description, preset_names, preset_path

NAMES = ("cpu", "ddp", "ddp_bf16", "ddp_fp16", "debug", "deterministic", "fsdp", "single_gpu")
RUNNABLE = sorted(set(NAMES) - {"fsdp", "single_gpu"})


def test_names():
    assert preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_a_description_and_trainer_settings(name):
    text = preset_path(name).read_text()
    assert text.startswith("# ")
    assert preset_description(name) == text[2 : text.index("\n")]
    assert set(yaml.safe_load(text)) == {"trainer"}


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
def test_the_trainer_takes_it(name, monkeypatch):
    enabled = torch.are_deterministic_algorithms_enabled()
    try:
        trainer = Trainer(**preset(name, logger=False, enable_checkpointing=False))
    finally:
        torch.use_deterministic_algorithms(enabled)
    strategy = {"ddp": "DDPStrategy", "ddp_bf16": "DDPStrategy", "ddp_fp16": "DDPStrategy"}
    assert type(trainer.strategy).__name__ == strategy.get(name, "SingleDeviceStrategy")


def test_precisions():
    assert preset("ddp_bf16")["precision"] == "bf16-mixed"
    assert preset("ddp_fp16")["precision"] == "16-mixed"
    assert "precision" not in preset("ddp")


def test_overrides_win():
    assert preset("ddp", devices=4, max_epochs=3) == {
        "accelerator": "auto",
        "devices": 4,
        "strategy": "ddp",
        "max_epochs": 3,
    }


def test_unknown_preset():
    with pytest.raises(InvalidValueError) as caught:
        preset("single-gpu")
    assert str(caught.value).startswith(
        "There is no preset 'single-gpu'; did you mean 'preset:single_gpu'? Presets: cpu, "
    )


@pytest.mark.parametrize("name", ["single_gpu", "fsdp"])
def test_a_preset_that_cannot_run_here(name, monkeypatch):
    monkeypatch.setattr(lightning_tuning.presets.torch.cuda, "is_available", lambda: False)
    with pytest.raises(TuningError) as caught:
        check_runnable(["debug", name], "cuda", 1)
    assert str(caught.value) == f"preset {name} needs a CUDA device, none found; use preset:cpu"
    assert check_runnable([name], "cpu", 1) is None, "a later configuration chose the CPU"
    monkeypatch.setattr(lightning_tuning.presets.torch.cuda, "is_available", lambda: True)
    assert check_runnable([name], "cuda", 1) is None


def test_ddp_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(lightning_tuning.presets.torch.accelerator, "is_available", lambda: False)
    note = check_runnable(["ddp_bf16"], "auto", "auto")
    assert note == "preset ddp_bf16 found no GPU and runs one process on the CPU; --trainer.devices=2 runs two"
    assert check_runnable(["ddp"], "auto", 2) is None
    assert check_runnable(["cpu", "debug"], "cpu", 1) is None
