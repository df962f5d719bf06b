"""DPR's top-k accuracy: judges retrieved passages by the answers that they contain.

As published, only the text of a passage counts, and every answer counts, including yes and no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.evaluation.judgements import Qrels
from sleuth.evidence import has_answer


def answer_qrels(answers: Mapping[str, Sequence[str]], texts: Mapping[str, Mapping[str, str]]) -> Qrels:
    """1 if a retrieved passage contains an answer to its query, else 0.

    ``answers`` by query; ``texts`` by passage, by query. Success@k with these judgements is top-k accuracy.
    """
    return {
        query: {passage: int(has_answer(text, accepted)) for passage, text in texts.get(query, {}).items()}
        for query, accepted in answers.items()
    }
