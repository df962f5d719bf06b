"""Length and language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import regex

from sleuth.errors import ConfigError, did_you_mean
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import LanguageSettings, LengthSettings
from workflows.synthesis.ngrams import UNSPACED
from workflows.synthesis.writing import Written

_LETTERS_OF_A_WORD = 3
_UNSPACED = regex.compile(UNSPACED)


LABELLED = ("long_short",)
"""Shapes of `e5` whose positive is a label, which has a word or two."""


class Length:
    def __init__(self, settings: LengthSettings, _bench: Bench) -> None:
        self._settings = settings

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        return [self._fault(row) for row in rows]

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {}

    def _fault(self, written: Written) -> str | None:
        chosen, words = self._settings, count_words(written.row.query)
        if words < chosen.min_words:
            return "query too short"
        if words > chosen.max_words:
            return "query too long"
        lengths = [count_words(passage.text) for passage in written.row.positives]
        if min(lengths) < chosen.min_passage_words and written.made.get("shape") not in LABELLED:
            return "passage too short"
        return "passage too long" if max(lengths) > chosen.max_passage_words else None


class Language:
    def __init__(self, settings: LanguageSettings, _bench: Bench) -> None:
        self._settings = settings
        self._identifier = _identifier()

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        return [self._fault(row.row.query) for row in rows]

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {}

    def _fault(self, query: str) -> str | None:
        language, probability = self._identifier.classify(query)
        if language in self._settings.languages or probability < self._settings.sure:
            return None
        return f"in {language}"


def check_languages(settings: LanguageSettings) -> None:
    """Raise ConfigError for a code that no query is ever found to be in: all rows would be dropped."""
    known = _identifier().nb_classes
    for code in settings.languages:
        if code not in known:
            raise ConfigError(f"the language filter knows no language '{code}'", did_you_mean(code, known))


def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def count_words(text: str) -> int:
    """Words between spaces; of scripts that write none between words, three letters count as one."""
    letters = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + -(-letters // _LETTERS_OF_A_WORD)
