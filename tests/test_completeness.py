"""A technique has one name everywhere, and every part that belongs to it."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path

import pytest

import lightning_tuning
from lightning_tuning import mixins
from lightning_tuning.mixins import STAGES, TECHNIQUES, TuningMixin
from lightning_tuning.mixins.composition import own_arguments

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_tuning" / "mixins"
every_technique = pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.stem)
README = (ROOT / "README.md").read_text()
CALLBACKS = {path.stem for path in (ROOT / "lightning_tuning" / "callbacks").glob("[!_]*.py")}
CARD_PARTS = (
    "## Class line",
    "## YAML key",
    "## Arguments",
    "## Cost",
    "## Composes with",
    "## Accumulation and DDP",
    "## Usual mistakes",
    "## Measured",
    "## Source",
)


def card(technique) -> str:
    return (ROOT / "docs" / "techniques" / f"{technique.stem}.md").read_text()


def source_file(technique) -> Path:
    return Path(inspect.getfile(technique))


def test_every_mixin_file_is_a_technique():
    files = {path.stem for folder in PACKAGE.iterdir() if folder.is_dir() for path in folder.glob("[!_]*.py")}
    assert files - {"streams"} == {technique.stem for technique in TECHNIQUES}


def test_stems_are_unique_and_none_begins_another_ones_arguments():
    stems = [technique.stem for technique in TECHNIQUES]
    assert len(set(stems)) == len(stems)
    assert not [(a, b) for a in stems for b in stems if a != b and b.startswith(f"{a}_")]


@every_technique
def test_file_class_and_test_carry_the_stem(technique):
    path = source_file(technique)
    assert path.stem == technique.stem
    assert path.parent.parent == PACKAGE
    assert technique.__name__.lower() == technique.stem.replace("_", "") + "mixin"
    assert (ROOT / "tests" / "mixins" / path.parent.name / f"test_{technique.stem}.py").is_file()


@every_technique
def test_arguments_carry_the_stem_and_are_simple(technique):
    arguments = own_arguments(technique)
    assert arguments
    for name, parameter in arguments.items():
        assert name.startswith(technique.stem)
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert isinstance(parameter.default, (bool, int, float, str, type(None)))
        assert re.search(rf"^ +{name}: ", technique.__doc__, re.MULTILINE), f"{name} has no entry under Args"


@every_technique
def test_what_it_declares_of_itself(technique):
    assert issubclass(technique, TuningMixin)
    assert technique.stage is None or technique.stage in STAGES
    assert technique.off
    assert technique.off.keys() <= own_arguments(technique).keys()
    on = technique.is_on({name: p.default for name, p in own_arguments(technique).items()})
    assert on or technique.stem == "frozen_teacher"  # which cannot know a file
    assert not technique.is_on(technique.off)
    for part in ("Args:", "Raises:", "Source:", "Off: "):
        assert part in technique.__doc__


@every_technique
def test_exports_and_changelog(technique):
    name = technique.__name__
    assert getattr(mixins, name) is technique
    assert name in mixins.__all__
    assert getattr(lightning_tuning, name) is technique
    assert name in lightning_tuning.__all__
    assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()


@every_technique
def test_the_card_has_every_part_and_every_argument(technique):
    text = card(technique)
    assert text.startswith(f"# {technique.__name__}\n")
    places = [text.find(f"\n{part}\n") for part in CARD_PARTS]
    assert -1 not in places
    assert places == sorted(places)
    assert re.search(rf"class \w+\(.*{technique.__name__}.*\):", text)
    rows = dict(re.findall(r"^\| `(\w+)` \| (`[^|]*`) \|", text, re.MULTILINE))
    assert rows.keys() == own_arguments(technique).keys()
    for name, parameter in own_arguments(technique).items():
        assert rows[name] == f"`{parameter.default}`".replace("`None`", "`null`").replace("`True`", "`true`").replace(
            "`False`", "`false`"
        ), f"the default of {name}"
    assert re.search(rf"^\s+{next(iter(technique.off))}: ", text, re.MULTILINE), "the YAML key"
    assert re.search(r"\*\*(Exact|Exact in expectation|Coupled to the batch)\*\*", text)


def test_there_is_a_card_of_each_technique_and_callback_and_of_nothing_else():
    cards = {path.stem for path in (ROOT / "docs" / "techniques").glob("*.md")}
    assert cards == {technique.stem for technique in TECHNIQUES} | CALLBACKS


@every_technique
def test_the_card_tells_what_was_measured(technique):
    measured = card(technique).split("## Measured")[1].split("## Source")[0]
    assert "recipes/" in measured
    assert re.search(r"[-+]?\d+\.\d", measured)


def test_techniques_stand_in_stage_order_everywhere():
    stages = [*STAGES, None]
    assert list(TECHNIQUES) == sorted(TECHNIQUES, key=lambda technique: stages.index(technique.stage))
    names = [technique.__name__ for technique in TECHNIQUES]
    assert [name for name in lightning_tuning.__all__ if name in names] == names
    rows = re.findall(r"^\| (\w+) \| \[`(\w+)`\]\(docs/techniques/\w+\.md\) \| `(\w+)` \|", README, re.MULTILINE)
    assert [(stage, name) for stage, name, _ in rows] == [(t.stage or "any", t.__name__) for t in TECHNIQUES]
    assert [t.stem for t, (_, _, key) in zip(TECHNIQUES, rows, strict=True) if key not in t.off] == []


def test_each_technique_is_in_its_row_of_the_design():
    text = (ROOT / "docs" / "design.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| ([^|]*) \| ", text, re.MULTILINE))
    for technique in TECHNIQUES:
        if technique.stage != "split":  # too many to name
            assert f"`{technique.__name__}`" in rows[technique.stage or "none"]


def test_the_numbers_in_the_documents():
    assert f"{len(TECHNIQUES)} mixins and {len(CALLBACKS)} callbacks" in README
    pairs = list(itertools.combinations(TECHNIQUES, 2))
    conflicts = sum(a.stem in b.conflicts or b.stem in a.conflicts for a, b in pairs)
    assert f"Of all {len(pairs)} pairs {conflicts} conflict" in (ROOT / "docs" / "design.md").read_text()


def test_the_hosts_page_tells_what_each_technique_needs_of_a_module():
    page = (ROOT / "docs" / "hosts.md").read_text().split("## What a technique needs of a module of your own")[1]
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ") and "Mixin" in line]
    told = {
        name: set(re.findall(r"`(\w+)`", members)) for members, names in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert told == {technique.__name__: set(technique.needs) for technique in TECHNIQUES}
    streams = page.split("**Batches with streams**")[1].split(".\n")[0]
    assert set(re.findall(r"`(\w+Mixin)`", streams)) == {t.__name__ for t in TECHNIQUES if t.needs_streams}
