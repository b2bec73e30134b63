import os

import pytest

from lightning_tuning.data.memory import available_memory, check_room, in_words
from lightning_tuning.errors import InvalidValueError

GB = 10**9
MEMINFO = f"MemTotal: 9999999 kB\nMemFree: 5 kB\nMemAvailable: {8 * GB // 1024} kB\nHugePages_Total: 0\n"
MACHINE = 8 * GB // 1024 * 1024
UNLIMITED = str(2**63 - 4096)


@pytest.fixture
def machine(tmp_path):
    """Makes a tree of ``proc`` and ``sys`` files."""

    def make(files):
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def group(folder, limit, used, cached=0, version=2):
    """The files of a control group."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    limit_name, used_name, cached_name = names[version]
    return {
        f"{folder}/{limit_name}": f"{limit}\n",
        f"{folder}/{used_name}": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\n{cached_name} {cached}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/\n"}, MACHINE),
        # Version 2: a container, a job within a limited slice, no limit, more allowed than there is, nothing left.
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", 5 * GB, 3 * GB, GB)}, 3 * GB),
        (
            {
                "proc/self/cgroup": "0::/slice/job\n",
                **group("sys/fs/cgroup/slice", 4 * GB, 2 * GB),
                **group("sys/fs/cgroup/slice/job", "max", GB),
            },
            2 * GB,
        ),
        (
            {
                "proc/self/cgroup": "0::/slice/job\n",
                **group("sys/fs/cgroup/slice", 4 * GB, GB),
                **group("sys/fs/cgroup/slice/job", GB, 0),
                **group("sys/fs/cgroup/other", GB, GB),
            },
            GB,
        ),
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", "max", 3 * GB)}, MACHINE),
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", 99 * GB, 3 * GB)}, MACHINE),
        ({"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", GB, 2 * GB)}, 0),
        # Version 1: the path that the container has outside does not exist in it; no limit.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n1:name=systemd:/docker/1f\n0::/x\n",
                **group("sys/fs/cgroup/memory", 6 * GB, 2 * GB, GB, version=1),
            },
            5 * GB,
        ),
        # A group of another controller.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/small\n4:memory:/\n0::/small\n",
                **group("sys/fs/cgroup/memory/small", GB, 0, version=1),
            },
            MACHINE,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                **group("sys/fs/cgroup/memory", UNLIMITED, 2 * GB, version=1),
            },
            MACHINE,
        ),
    ],
)
def test_what_the_machine_and_the_control_groups_leave(machine, files, expected):
    assert available_memory(machine(files)) == expected


def test_without_meminfo_all_memory_counts(tmp_path):
    assert available_memory(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_this_machine():
    assert 10**7 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_four_fifths_may_be_taken():
    check_room("They", 800, 1000, "here", "Go.")
    with pytest.raises(InvalidValueError, match=r"^They take 0.0 MB, more than 80% of the 0.0 MB that are free here. "):
        check_room("They", 801, 1000, "here", "Go.")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0.0 MB"), (1_250_000, "1.2 MB"), (999_000_000, "999.0 MB"), (GB, "1.0 GB")]
)
def test_bytes_as_text(num_bytes, text):
    assert in_words(num_bytes) == text
