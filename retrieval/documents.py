"""Whole documents behind the passages that a retriever finds.

A corpus of passages seldom says which of them were cut from one document. Those that do stand side by side in it, as
in Wikipedia by 100 words, with one title; without titles, ids such as ``d7#0``, ``d7#1`` tell (pyserini's way).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from sleuth.protocols import Documents, Retriever
from sleuth.types import Passage

LONGEST = 1000
"""Passages of one document on either side of the one that was asked for: a corpus may have one title throughout."""


def documents_of(retriever: Retriever | None) -> Documents | None:
    """What reads the documents of ``retriever``'s passages; None if it cannot, such as a service elsewhere."""
    found = getattr(retriever, "documents", None)
    return found if isinstance(found, Documents) else None


@runtime_checkable
class _ById(Protocol):
    def get_many(self, identifiers: Sequence[str]) -> list[Passage | None]: ...


def find_passages(retriever: Retriever | None, identifiers: Sequence[str]) -> list[Passage | None] | None:
    """The passages with these ids, None where there is none; None as a whole if ``retriever`` cannot look them up."""
    documents = documents_of(retriever)
    return documents.get_many(identifiers) if isinstance(documents, _ById) else None


def document_around(read: Callable[[int], Passage], ordinal: int, count: int) -> list[Passage]:
    """The passages of the document of passage ``ordinal``, in the order of a corpus of ``count`` passages."""
    middle = read(ordinal)
    before: list[Passage] = []
    while ordinal - len(before) > 0 and len(before) < LONGEST:
        passage = read(ordinal - len(before) - 1)
        if not same_document(passage, middle):
            break
        before.append(passage)
    after: list[Passage] = []
    while ordinal + len(after) + 1 < count and len(after) < LONGEST:
        passage = read(ordinal + len(after) + 1)
        if not same_document(passage, middle):
            break
        after.append(passage)
    return [*reversed(before), middle, *after]


def same_document(one: Passage, other: Passage) -> bool:
    """Whether two neighbours in a corpus are of one document."""
    if one.title.strip() or other.title.strip():
        return one.title == other.title
    document = one.id.rpartition("#")[0]
    return bool(document) and document == other.id.rpartition("#")[0]
