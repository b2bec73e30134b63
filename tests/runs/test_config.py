import pytest

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import RunConfig


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/"])
def test_a_name_is_one_folder(name):
    with pytest.raises(InvalidValueError, match="one folder"):
        RunConfig(name=name)


def test_a_monitor_needs_a_mode():
    with pytest.raises(InvalidValueError, match=r"run.monitor is 'val/loss'.*--run.mode=min"):
        RunConfig(monitor="val/loss")
    assert RunConfig(monitor="val/loss", mode="min", name="digits").test is True
