import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import new_run_folder
from lightning_tuning.runs.folder import rank_zero_only, run_folder

NOW = datetime(2026, 11, 20, 23, 36, 0)


def test_the_same_second_gives_different_folders(tmp_path):
    folders = [new_run_folder(tmp_path / "runs", "digits", now=NOW) for _ in range(3)]
    names = ["20261120-233600", "20261120-233600-2", "20261120-233600-3"]
    assert folders == [tmp_path / "runs" / "digits" / name for name in names]
    assert new_run_folder(tmp_path / "runs", "digits", "-test", NOW).name == "20261120-233600-test"


def test_the_same_moment_gives_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path, "race", now=NOW), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_disk_with_no_room_for_a_folder(tmp_path, monkeypatch):
    new_run_folder(tmp_path, "toy", now=NOW)

    def full(path, *args):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(InvalidValueError) as caught:
        new_run_folder(tmp_path, "toy", now=NOW.replace(second=1))
    assert re.fullmatch(
        rf"No space left on device: no run can be written to '{tmp_path}', where [\d.]+ MB are free\. Make room, or "
        r"write --run\.dir=FOLDER on another disk\.",
        str(caught.value),
    )


def test_processes_of_one_run_share_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTNING_TUNING_RUN_FOLDER", raising=False)
    first = run_folder(tmp_path, "digits")
    second = run_folder(tmp_path, "digits")
    assert first != second
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert run_folder(tmp_path, "digits") == second


@pytest.mark.parametrize("variable", ["rank", "NODE_RANK"])
def test_a_process_of_a_cluster_makes_no_folder(variable, tmp_path, monkeypatch):
    monkeypatch.delenv("LIGHTNING_TUNING_RUN_FOLDER", raising=False)
    if variable == "rank":
        monkeypatch.setattr(rank_zero_only, "rank", 3)
    else:
        monkeypatch.setenv(variable, "1")
    run_folder(tmp_path / "runs", "digits")
    assert not (tmp_path / "runs").exists()
