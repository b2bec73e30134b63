"""Write what scikit-learn's docstrings say as a table of short texts; the topic is the package that says it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path

import sklearn

from recipes.building import command

TOPICS = ("cluster", "decomposition", "ensemble", "linear_model", "metrics", "preprocessing")
UNTOLD = ("Examples", "References", "See Also", "Methods")
"""Sections without sentences on the topic."""
LENGTH = 4
"""Most sentences of a text."""

_HEADING = re.compile(r"^(.+)\n[-=]{3,}\n", re.MULTILINE)
_PARAMETER = re.compile(r"^ *[\w*, ]+ : .*\n?", re.MULTILINE)
"""The line of a parameter's name and type."""
_MARKUP = re.compile(r":\w+(?::\w+)*:`~?\.?([^`<]*?)(?:\s*<[^`]*>)?`")
_SENTENCE_END = re.compile(r"(?<=[\w)\]][.!?])\s+(?=[A-Z])")


def fill(folder: Path) -> str:
    """Write ``texts.tsv`` with the columns ``text``, ``topic`` and ``file``.

    Up to ``LENGTH`` sentences of a docstring that follow each other are a text. A text that two topics have is left
    out, and one that comes twice in a topic is there once.

    Args:
        folder: An empty folder.

    Returns:
        How many texts of how many files it has.
    """
    root = Path(sklearn.__file__).parent
    found = [
        (text, topic, file.relative_to(root).as_posix())
        for topic in TOPICS
        for file in sorted((root / topic).rglob("*.py"))
        if "tests" not in file.parts
        for docstring in docstrings(file.read_text(encoding="utf-8"))
        for text in texts(docstring)
    ]
    topics_of = Counter(text for text, _ in {(text, topic) for text, topic, _ in found})
    rows = {text: (topic, file) for text, topic, file in reversed(found) if topics_of[text] == 1}
    lines = ["text\ttopic\tfile", *(f"{text}\t{topic}\t{file}" for text, (topic, file) in sorted(rows.items()))]
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = ", ".join(f"{topic} {count}" for topic, count in Counter(topic for topic, _ in rows.values()).items())
    files = len({file for _, file in rows.values()})
    return f"texts.tsv, {len(rows)} texts of {files} files of scikit-learn {sklearn.__version__} ({counts})"


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield text


def texts(docstring: str) -> Iterator[str]:
    """Each ``LENGTH`` sentences of a docstring; the last text may have fewer."""
    all_of_it = list(sentences(docstring))
    for start in range(0, len(all_of_it), LENGTH):
        yield " ".join(all_of_it[start : start + LENGTH])


def sentences(docstring: str) -> Iterator[str]:
    """Whole sentences of at least six words, in one line each and without markup.

    Example:
        >>> list(sentences("Fit it.\\n\\nThis finds the\\n:class:`~sklearn.svm.SVC` that is best. Use it with care."))
        ['This finds the sklearn.svm.SVC that is best.']
    """
    pieces = _HEADING.split(docstring)
    told = [pieces[0], *(body for name, body in zip(pieces[1::2], pieces[2::2], strict=True) if name not in UNTOLD)]
    for section in told:
        for paragraph in re.split(r"\n\s*\n", section):
            for text in _SENTENCE_END.split(_plain(paragraph)):
                if text[:1].isupper() and text.endswith(".") and len(text.split()) >= 6:
                    yield text


def _plain(paragraph: str) -> str:
    """A paragraph in one line; empty if it is code, a list of versions or the like."""
    text = cleandoc("\n" + _PARAMETER.sub("", paragraph))
    if not text or text.startswith(("..", ">>>", "|", "+", "*", "-", "[")):
        return ""
    return " ".join(_MARKUP.sub(r"\1", text).replace("`", "").split())


def main(arguments: Sequence[str] | None = None) -> None:
    command(__doc__, "data/text_topics", fill, arguments)


if __name__ == "__main__":
    main()
