"""Some words make prose hard to read; documents and sources do without them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BANNED = {
    r"of which": "start a new sentence, or name the thing",
    r"what (?:nobody|there is|is left|is had)": "name the thing",
    r"by what": "name the thing",
    r"(?:is|are|was|were) had": "returns, gets",
    r"lest": "so that ... not",
    r"nobody": "name the actor, or use the passive",
    r"who(?:m)?ever": "users who, callers that",
    r"foretold|foretells?|foretelling": "predicted, predict",
    r"heed(?:s|ed|ing)?": "use, respect",
    r"mend(?:s|ed|ing)?": "fix, recompute",
    r"for to": "because, to",
    r"anew": "again",
    r"sooner": "faster, earlier",
    r"amid": "among, surrounded by",
    r"unasked": "automatically",
    r"spelt": "written",
    r"held against": "compared with",
    r"for the sake of": "for",
}
"""Pattern -> what to write instead."""

BREAK = r"\s+(?:(?:#+|//+)\s*)?"  # a space, or the end of a line and the mark of a comment
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b".replace(" ", BREAK), re.IGNORECASE)
FILES = ("*.md", ".ci/run", "docs/*.md", "benchmarks/*.md", "examples/*.md")
SOURCES = ("torch_corr", "tests", "benchmarks", "examples")


def checked_files():
    """Documents first, then the sources in Python and C++; not this file."""
    found = [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    for folder in SOURCES:
        found += [
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.suffix in {".py", ".cpp", ".hpp", ".c", ".sh"} and path != Path(__file__)
        ]
    return found


def findings(text):
    """``line N: phrase`` for each banned phrase; names such as ``test_of_which`` count too."""
    text = text.replace("_", " ")
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}"
        for match in PATTERN.finditer(text)
    ]


def prose(path):
    """The text of a file; in documents without names in backticks."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]*`", "", text) if path.suffix == ".md" else text


def test_no_file_has_banned_words():
    found = {path.relative_to(ROOT).as_posix(): findings(prose(path)) for path in checked_files()}
    found = {name: lines for name, lines in found.items() if lines}
    assert not found, "rewrite them; BANNED in tests/test_prose.py says how"


@pytest.mark.parametrize(
    "text",
    [
        "It is slow, lest auto take it.",
        "def test_nobody_waits():",
        "a value, of\n    # which there are two",
        "what is\n// foretold",
    ],
)
def test_banned_words_are_found(text):
    assert len(findings(text)) == 1


def test_other_words_are_allowed():
    assert not findings("Recommended: amend the commit; the latest of 3 machines, which is fast.")
