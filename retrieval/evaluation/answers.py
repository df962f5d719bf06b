"""DPR's top-k accuracy: does a passage hold an answer string?

Tokens and normalisation are DPR's (Karpukhin et al. 2020, after DrQA): NFD, tokens of letters, digits and marks or
of a single other visible character, lower case; an answer is in a passage when its tokens stand there side by side.
Only the text of a passage counts, not its title.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import regex

from retrieval.evaluation.judgements import Qrels

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE | regex.UNICODE | regex.MULTILINE)


def tokens(text: str) -> list[str]:
    """DPR's tokens of ``text``, in lower case."""
    return [token.lower() for token in _TOKEN.findall(unicodedata.normalize("NFD", text))]


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of any answer stand in ``text`` side by side. An answer without tokens is in no text."""
    return _holds(tokens(text), [found for answer in answers if (found := tokens(answer))])


def answer_qrels(answers: Mapping[str, Sequence[str]], texts: Mapping[str, Mapping[str, str]]) -> Qrels:
    """Judgements of retrieved passages: 1 where one holds an answer of its query.

    ``answers`` by query; ``texts`` by passage, by query. Success@k of these judgements is top-k accuracy.
    """
    qrels: Qrels = {}
    for query, accepted in answers.items():
        wanted = [found for answer in accepted if (found := tokens(answer))]
        qrels[query] = {passage: int(_holds(tokens(text), wanted)) for passage, text in texts.get(query, {}).items()}
    return qrels


def _holds(haystack: list[str], needles: Sequence[list[str]]) -> bool:
    return any(
        haystack[start : start + len(needle)] == needle
        for needle in needles
        for start, token in enumerate(haystack)
        if token == needle[0]
    )
