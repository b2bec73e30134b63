"""What docs/presets.md gives as a preset's settings, and as the Trainer written by hand, is what the preset sets."""

import re
from pathlib import Path

import pytest

from lightning_tuning.presets import preset, preset_names, preset_settings
from tests.presets.test_launcher import SLURM, TORCHRUN, started  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs/presets.md").read_text()
SECTIONS = {m[1]: m[2] for m in re.finditer(r"^### `(\w+)`\n(.*?)(?=^##+ )", PAGE, re.MULTILINE | re.DOTALL)}
TABLE = dict(re.findall(r"^\| `(\w+)` \| `(\w+=\"[^\"]+\")` \|", PAGE, re.MULTILINE))


def by_hand(name):
    """The arguments of the Trainer in the section of a preset."""
    namespace = {"Trainer": dict, "preset": preset}
    for code in re.findall(r"^```python\n(.*?)^```", SECTIONS[name], re.MULTILINE | re.DOTALL):
        exec(code, namespace)
    return namespace["by_hand"]


def test_each_preset_has_a_section_or_a_line():
    assert sorted([*SECTIONS, *TABLE]) == list(preset_names())


@pytest.mark.parametrize("name", sorted(SECTIONS.keys() - {"multi_node"}))
def test_the_trainer_by_hand(name):
    assert by_hand(name) == preset_settings(name)


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM])
def test_the_trainer_by_hand_of_several_nodes(environment, started):  # noqa: F811
    """The page's commands start four processes on each of two nodes."""
    started(environment)
    assert by_hand("multi_node") == preset("multi_node", "ddp") == preset("ddp", "multi_node")


@pytest.mark.parametrize("name", TABLE)
def test_the_precisions(name):
    key, value = TABLE[name].split("=")
    assert preset_settings(name) == {key: value.strip('"')}
