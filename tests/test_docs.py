"""Every Python snippet of the README and the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)[^)]*\)")


def snippets(page: Path) -> list[tuple[int, str]]:
    """The ```python blocks of a page with the lines they start on."""
    text = page.read_text()
    found = re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start(2)].count("\n"), re.sub(rf"^{m[1]}", "", m[2], flags=re.MULTILINE)) for m in found]


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a snippet writes stays out of the repository
    namespace = {"__name__": "__snippet__"}
    for line, code in snippets(page):
        # Blank lines in front, so that a traceback names the page's own lines.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [t for t in LINK.findall(prose) if not t.startswith(("http://", "https://", "mailto:"))]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_collector_finds_blocks_and_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n\n- item\n\n  ```python\n  y = x\n  ```\n\n```bash\nls\n```\n")
    assert snippets(page) == [(3, "x = 1\n"), (9, "y = x\n")]
