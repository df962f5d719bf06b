"""What the preset ``search_r1`` alone does as Search-R1's code does (``search_r1/llm_agent/generation.py``).

Its passages are neutralised all the same, and only text that the policy sampled is parsed.
"""

from __future__ import annotations

import re

from sleuth.types import Action, Answer, Invalid, Search

_ACTION = re.compile(r"<(?P<tag>search|answer)>(?P<content>.*?)</(?P=tag)>", re.DOTALL)


def parse_lenient(text: str) -> Action:
    """The action in ONE new turn: the first pair of matching action tags, wherever it stands.

    A turn ends at its first ``</search>``, or if there is none, at its first ``</answer>``. Tags in a thought, open or
    closed, count; other tags in the content are part of it; the content may be empty.
    """
    for closing in ("</search>", "</answer>"):
        head, found, _ = text.partition(closing)
        if found:
            text = head + found
            break
    action = _ACTION.search(text)
    if action is None:
        return Invalid("nothing stands between <search> and </search> or between <answer> and </answer>")
    content = action["content"].strip()
    return Search(content) if action["tag"] == "search" else Answer(content)


def with_question_mark(question: str) -> str:
    """``question`` without white space around it and with a question mark at its end, as in the prepared data."""
    text = question.strip()
    return text if text.endswith("?") else f"{text}?"
