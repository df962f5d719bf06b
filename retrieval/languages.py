"""The languages whose words BM25 can tell apart and stem. Imports without Java."""

from __future__ import annotations

from typing import Literal

# fmt: off
Language = Literal[
    "ar", "bn", "da", "de", "en", "es", "fa", "fi", "fr", "hi", "hu", "id", "it",
    "ja", "ko", "nl", "no", "pl", "pt", "ru", "sv", "te", "tr", "uk", "zh",
]
# fmt: on
"""Languages, by their codes of ISO 639-1, that Anserini has an analyser of Lucene's for.

Not its Thai: it needs word breaks that the Java runtimes of most packages leave out."""
