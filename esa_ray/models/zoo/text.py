"""The text that the zoo learns from: the docstrings of Python's standard library, which every machine has.

They are English about Python, as Python's documentation is, on which studies measure; but not that text. Modules are
held out whole, so that validation is on docstrings of which no neighbour was seen.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from esa_ray.data import text_fingerprint
from esa_ray.data.documents import SEPARATOR

#: Folders whose modules explain nothing, or aren't the library's.
LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "turtledemo", "encodings", "ensurepip"}
    | {"pydoc_data"}  # the documentation that studies measure on
)
#: One module in so many is held out.
HELD_OUT = 20


@cache
def docstrings() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Docstrings to train on and docstrings held out, each once, in the order of modules and lines."""
    library = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = ([], [])
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if LEFT_OUT & set(module.parts):
            continue
        held_out = int(hashlib.sha256(str(module).encode()).hexdigest(), 16) % HELD_OUT == 0
        for text in _of(path):
            if text not in seen:
                seen.add(text)
                parts[held_out].append(text)
    return tuple(parts[0]), tuple(parts[1])


def _of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # files that aren't Python are among the library's data
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield text


def fingerprint() -> str:
    """Fingerprint of the training text."""
    return text_fingerprint(list(docstrings()[0]))


def stream(documents: tuple[str, ...]) -> bytes:
    """Documents one after the other."""
    return SEPARATOR.join(documents).encode()


#: Kinds of instructions → what each asks, of a sentence's words.
INSTRUCTIONS = ("Repeat: ", "First word: ", "Last word: ", "Upper case: ", "Continue: ")


def conversations(documents: tuple[str, ...], n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` instructions with their answers, made of sentences of the documents.

    >>> conversations(("Return the largest of these numbers.",), 1, seed=3)
    [('First word: Return the largest of these numbers.', 'Return')]
    """
    sentences = [s for d in documents for s in re.split(r"(?<=[.!?])\s+", " ".join(d.split())) if len(s.split()) >= 4]
    chosen = random.Random(seed)
    return [_conversation(chosen.choice(INSTRUCTIONS), chosen.choice(sentences)[:80], chosen) for _ in range(n)]


def _conversation(instruction: str, sentence: str, chosen: random.Random) -> tuple[str, str]:
    words = sentence.split()
    match instruction:
        case "First word: ":
            return instruction + sentence, words[0]
        case "Last word: ":
            return instruction + sentence, words[-1]
        case "Upper case: ":
            short = " ".join(words[:4])
            return instruction + short, short.upper()
        case "Continue: ":
            cut = chosen.randrange(1, len(words))
            return instruction + " ".join(words[:cut]), " ".join(words[cut:])
    return instruction + sentence, sentence
