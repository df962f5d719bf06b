"""The reward of Search-R1's v0.3 runs: exact match with a format reward folded into it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rewards.config import RewardSettings
from rewards.format import thinks_then_acts
from rewards.text_match import exact_match
from sleuth.evidence import contains_answer
from sleuth.settings import Share
from sleuth.types import Answer, Question, Search, Trajectory, Turn

_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
_SHAPES: dict[type, list[str]] = {
    Search: ["<think>", "</think>", "<search>", "</search>"],
    Answer: ["<think>", "</think>", "<answer>", "</answer>"],
}


class SearchR1FormatSettings(RewardSettings):
    """Answer, format and retrieval in one number. Names and defaults are those of Search-R1's v0.3 scripts.

    ``structure_format_score`` is what the right format is worth, ``final_format_score`` a wrong answer in the wrong
    format, ``retrieval_score`` a passage that contains the answer when the answer given is wrong.
    """

    kind: Literal["search_r1_format"] = "search_r1_format"
    structure_format_score: Share = 0.2
    final_format_score: Share = 0.1
    retrieval_score: Share = 0.0

    def open(self) -> SearchR1Format:
        return SearchR1Format(self.structure_format_score, self.final_format_score, self.retrieval_score)


@dataclass(frozen=True)
class SearchR1Format:
    """With s, f and r for the three scores (arXiv 2505.15117; ``qa_em_format.py`` of its code):

    | answer | right format | wrong format |
    | --- | --- | --- |
    | equals an accepted one | 1 | 1 - s |
    | another | s, or s + r if a passage found contains an accepted one | f |
    | none | cannot be | 0 |

    The format is right if every turn is one thought and then one search or answer, with nothing but space around
    them, and the last one answers. None without accepted answers.

    Turns and hits are read, where Search-R1 searches the decoded text, its prompt and passages included. So, on
    purpose: tags in a passage neither answer nor spoil the format; the example answer in the prompt (Beijing) is not
    the agent's; a passage contains an answer as everywhere in Sleuth (`sleuth.evidence`: whole words of its text, not
    its title; not yes or no).
    """

    structure: float = 0.2
    final: float = 0.1
    retrieval: float = 0.0
    name: str = "search_r1_format"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        if not question.answers:
            return None
        if trajectory.answer is None:
            return 0.0
        well_formed = all(map(_well_formed, trajectory.turns))
        if exact_match(trajectory.answer, question.answers):
            return 1.0 if well_formed else 1.0 - self.structure
        if not well_formed:
            return self.final
        hits = (hit for turn in trajectory.searches for hit in turn.hits)
        found = any(contains_answer(hit.passage, question.answers) for hit in hits)
        return self.structure + self.retrieval * found


def _well_formed(turn: Turn) -> bool:
    """Whether the turn is a thought, then the action; what was sampled past its closing tag was never read.

    A thought that was open before the turn has no tag there that opens it. In the Hermes form the action may be
    several searches.
    """
    if isinstance(turn.action, Search) and "<tool_call>" in turn.text:
        return thinks_then_acts(turn.text, turn.thinking)
    pieces = _TAG.split(turn.text)
    if turn.thinking:
        pieces = ["", "<think>", *pieces]
    tags, texts = pieces[1:8:2], pieces[0:8:2]  # text and tags in turn
    return tags == _SHAPES.get(type(turn.action)) and not texts[0].strip() and not texts[2].strip()
