"""A folder of data is there as a whole or not at all, and what is there already stays."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def building(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from recipes import building

    return building


def write_one(folder):
    (folder / "a.txt").write_text("a")
    return "a.txt"


def test_the_folder_holds_what_was_written(building, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    building.command("Write a.", "data/one", write_one, [])
    building.command("Write a.", "data/one", write_one, ["--out", "two"])

    assert capsys.readouterr().out == "data/one: a.txt\ntwo: a.txt\n"
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert names == ["data", "data/one", "data/one/a.txt", "two", "two/a.txt"]


def test_what_is_there_stays(building, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit, match=r"mine is there already, and stays as it is\. Remove it, or name another"):
        building.command(None, str(tmp_path / "mine"), write_one, [])

    assert list((tmp_path / "mine").iterdir()) == []


def test_a_failure_leaves_nothing(building, tmp_path):
    def fail(folder):
        write_one(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        building.build_folder(tmp_path / "data", fail)

    assert list(tmp_path.iterdir()) == []
