"""What a retriever reads of a search: the query alone, or with the question or the last thought behind it.

The form is a setting of an encoder, saved with its weights and part of its fingerprint. Whoever searches on behalf of
an agent writes queries in the form of the retriever (`form_of`), and so do training rows; a query without a question or
thought, as of a person, is written alone in every form.
"""

from __future__ import annotations

import re
from typing import Literal

QueryForm = Literal["query", "question_query", "thought_query"]

LONGEST_THOUGHT = 64
"""Words of a thought that are read: its last ones, which say what is wanted next."""
_BETWEEN = " | "
_ACTION = re.compile(r"<(search|tool_call)>")
_TAG = re.compile(r"</?\w+>")


def written(form: QueryForm, query: str, question: str = "", thought: str = "") -> str:
    """``query`` as a retriever of this form reads it. It stands first: an encoder cuts the end of a long text."""
    context = {"query": "", "question_query": question, "thought_query": thought}[form]
    context = " ".join(context.split())
    return query if not context or context == " ".join(query.split()) else f"{query}{_BETWEEN}{context}"


def query_of(text: str) -> str:
    """The query in a text that was ``written`` in any form."""
    return text.partition(_BETWEEN)[0]


def last_thought(turn: str) -> str:
    """What the text of a turn says before it searches, without tags; at most its last `LONGEST_THOUGHT` words.

    An action mentioned inside a thought is part of the thought: the last one of a turn acts.
    """
    acts = [match.start() for match in _ACTION.finditer(turn)]
    words = _TAG.sub(" ", turn[: acts[-1]] if acts else turn).split()
    return " ".join(words[-LONGEST_THOUGHT:])


def form_of(retriever: object) -> QueryForm:
    """The form in which ``retriever`` reads queries; ``query`` for one that does not say."""
    form: QueryForm = getattr(retriever, "query_form", "query")
    return form
