import inspect
import subprocess
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.presets import preset, preset_description, preset_names, preset_of, preset_path, preset_settings

AUTO = {"accelerator": "auto", "devices": "auto"}
SETTINGS = {
    "bf16": {"precision": "bf16-mixed"},
    "cpu": {"accelerator": "cpu", "devices": 1, "strategy": "auto"},
    "ddp": {**AUTO, "strategy": "ddp"},
    "debug": {
        "max_epochs": 2,
        "limit_train_batches": 4,
        "limit_val_batches": 2,
        "limit_test_batches": 2,
        "limit_predict_batches": 2,
        "log_every_n_steps": 1,
        "detect_anomaly": True,
    },
    "deterministic": {"deterministic": True, "benchmark": False},
    "fast": {
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": False,
        "log_every_n_steps": 0,
    },
    "fp16": {"precision": "16-mixed"},
    "fp32": {"precision": "32-true"},
    "fsdp": {"accelerator": "cuda", "devices": "auto", "strategy": "fsdp"},
    "multi_node": {"devices": "auto"},
    "single_gpu": {"accelerator": "cuda", "devices": 1, "strategy": "auto"},
}
RUNNABLE = sorted(SETTINGS.keys() - {"fp16", "fsdp", "multi_node", "single_gpu"})


def test_names():
    assert preset_names() == tuple(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_is_a_description_and_trainer_settings(name):
    text = preset_path(name).read_text()
    assert text.startswith("# ")
    assert preset_description(name) == text[2 : text.index("\n")]
    assert set(yaml.safe_load(text)) == {"trainer"}
    assert preset_settings(name) == SETTINGS[name]
    assert SETTINGS[name].keys() <= inspect.signature(Trainer).parameters.keys()
    assert preset_of(preset_path(name)) == name


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_trainer_takes_it(name):
    quiet = {"logger": False, "enable_checkpointing": False}
    enabled = torch.are_deterministic_algorithms_enabled()
    try:
        trainer = Trainer(**preset(name, **quiet))
    finally:
        torch.use_deterministic_algorithms(enabled)
    assert type(trainer.strategy).__name__ == ("DDPStrategy" if name == "ddp" else "SingleDeviceStrategy")
    assert trainer.precision == SETTINGS[name].get("precision", "32-true")


def test_fast_leaves_the_sanity_check_and_nothing_that_acts_in_a_step():
    trainer = Trainer(**preset("cpu", "fast"))
    assert trainer.loggers == trainer.checkpoint_callbacks == []
    assert trainer.progress_bar_callback is None
    assert trainer.num_sanity_val_steps == 2


def test_presets_compose_in_any_order():
    expected = {**AUTO, "devices": 4, "strategy": "ddp", "precision": "bf16-mixed", "max_epochs": 3}
    assert preset("ddp", "bf16", devices=4, max_epochs=3) == expected
    assert preset("bf16", "ddp", devices=4, max_epochs=3) == expected
    trainer = Trainer(**preset("ddp", "bf16", "fast", accelerator="cpu", devices=2))
    assert (trainer.world_size, trainer.precision, trainer.loggers) == (2, "bf16-mixed", [])


def test_an_override_wins():
    assert preset("ddp", devices=4) == {**AUTO, "devices": 4, "strategy": "ddp"}
    assert preset("fp32", precision="64-true") == {"precision": "64-true"}
    assert preset(max_epochs=3) == {"max_epochs": 3}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("bf16", "ddp", "fp16"),
            "preset:bf16 and preset:fp16 contradict each other: precision is 'bf16-mixed' in the first and '16-mixed' "
            "in the second. Leave one out.",
        ),
        (
            ("cpu", "ddp"),
            "preset:cpu and preset:ddp contradict each other: accelerator is 'cpu' in the first and 'auto' in the "
            "second, devices is 1 in the first and 'auto' in the second, strategy is 'auto' in the first and 'ddp' in "
            "the second. Leave one out.",
        ),
        (
            ("debug", "fast"),
            "preset:debug and preset:fast contradict each other: log_every_n_steps is 1 in the first and 0 in the "
            "second. Leave one out.",
        ),
    ],
)
def test_presets_that_contradict_each_other(names, message):
    with pytest.raises(InvalidValueError) as caught:
        preset(*names)
    assert str(caught.value) == message


def test_the_same_preset_twice_is_one():
    assert preset("bf16", "bf16") == SETTINGS["bf16"]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("single-gpu", "There is no preset 'single-gpu'; did you mean 'preset:single_gpu'? Presets: bf16, cpu, "),
        ("ddp_bf16", "There is no preset 'ddp_bf16'; write --config preset:ddp --config preset:bf16. Presets: "),
        ("ddp+fast", "There is no preset 'ddp+fast'; write --config preset:ddp --config preset:fast. Presets: "),
    ],
)
def test_unknown_preset(name, start):
    with pytest.raises(InvalidValueError) as caught:
        preset(name)
    assert str(caught.value).startswith(start)


def test_names_are_known_without_torch():
    code = "import sys; from lightning_tuning.presets import *; preset_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
