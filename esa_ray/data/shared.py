"""What two texts have in common: whole documents, or paragraphs of a text that is a single document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from esa_ray.data.documents import SEPARATOR

#: Characters, white space told once, below which a paragraph says nothing: headings, "Examples:".
LEAST = 32


@dataclass(frozen=True)
class Rest:
    """A text without what another holds, too.

    ``left_out`` are its documents, or of a text that is a single one its ``paragraphs``; ``share`` is theirs of all
    characters.
    """

    documents: list[str]
    left_out: int = 0
    share: float = 0.0
    paragraphs: bool = False

    @property
    def told(self) -> str | None:
        """What was left out, in words; None if it is nothing.

        >>> Rest([], 1, 0.031, True).told
        '1 paragraph (3.1%)'
        """
        if not self.left_out:
            return None
        what = "paragraph" if self.paragraphs else "document"
        return f"{self.left_out:,} {what}{'s' * (self.left_out != 1)} ({100 * self.share:.2g}%)"


def without(documents: list[str], other: Iterable[str]) -> Rest:
    """A text without the documents that another text holds as a document or in paragraphs; white space aside.

    Of a text that is a single document, as a file of plain text is, paragraphs are left out in place of documents.
    Those below :data:`LEAST` characters say nothing: they neither leave nor keep a document here.

    >>> rest = without(["one  row", "two"], ["two\\n", "one\\nrow", "three"])
    >>> rest.documents, rest.left_out, rest.share
    ([], 2, 1.0)
    >>> without(["a row", "two"], ["two\\n", "one\\nrow", "three"]).documents
    ['a row']
    """
    known: set[bytes] = set()
    for document in other:
        known.update(map(_told_apart, (document, *document.split(SEPARATOR))))

    def shared(part: str) -> bool:
        saying = [_told_apart(p) for p in part.split(SEPARATOR) if len(" ".join(p.split())) >= LEAST]
        return (bool(saying) and known.issuperset(saying)) or (not single and _told_apart(part) in known)

    single = len(documents) == 1
    parts = documents[0].split(SEPARATOR) if single else documents
    kept = [part for part in parts if not shared(part)]
    if len(kept) == len(parts):
        return Rest(documents)
    share = 1 - sum(map(len, kept)) / sum(map(len, parts))
    rest = SEPARATOR.join(kept)
    return Rest([rest] * bool(rest.strip()) if single else kept, len(parts) - len(kept), share, single)


def _told_apart(part: str) -> bytes:
    return hashlib.blake2b(" ".join(part.split()).encode(errors="surrogatepass"), digest_size=16).digest()
