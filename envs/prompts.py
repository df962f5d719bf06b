"""What the policy is told: one literal preset per style, and how a template becomes a prompt.

Slots in templates: ``{question}``, ``{passages}``, ``{number}``, ``{title}``, ``{text}``, ``{reason}``.
Outside text fills the first two and the passages' slots, and is tokenised as untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Chat = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Wording of one style. A prompt template contains ``{question}`` once, ``rag`` also ``{passages}``.

    An information block is ``opening + passage (separator passage)* + closing``. ``chat`` False: plain
    text even if the tokenizer has a chat template, unless the settings say ``always``. ``lenient``: turns are parsed
    by ``parse_lenient``. ``hard_cut``: a block that is too long loses its end, the closing tag included.
    ``question_mark``: a question that lacks one gets it. All three stand for Search-R1's code (``envs/search_r1.py``).
    """

    search: str
    direct: str
    cot: str
    rag: str
    opening: str
    passage: str
    separator: str
    closing: str
    nothing_found: str
    invalid: str
    searches_used: str
    answer_only: str
    last_turn: str = ""
    chat: bool = True
    lenient: bool = False
    hard_cut: bool = False
    question_mark: bool = False


ANSWER_FORM = "Put only the answer itself between <answer> and </answer>, as short as it can be: <answer>Oslo</answer>."

SLEUTH = Preset(
    search=(
        "Find the answer to the question at the end with the help of a search engine.\n"
        "In each of your turns, first think between <think> and </think>: what is known by now, what is missing. "
        "Then do exactly one thing:\n"
        "- search: write a short query between <search> and </search>. "
        "The best passages come back between <information> and </information>. One query asks for one fact; "
        "a question that joins several facts needs several searches.\n"
        f"- answer, as soon as the passages settle it. {ANSWER_FORM}\n\n"
        "Question: {question}\n"
    ),
    direct=f"Answer the question. {ANSWER_FORM} Write nothing else.\n\nQuestion: {{question}}\n",
    cot=(
        "Answer the question. First think step by step between <think> and </think>. "
        f"{ANSWER_FORM}\n\nQuestion: {{question}}\n"
    ),
    rag=(
        "Answer the question with the help of the passages. First think between <think> and </think>. "
        f"{ANSWER_FORM}\n{{passages}}\nQuestion: {{question}}\n"
    ),
    opening="\n<information>\n",
    passage="[{number}] {title}\n{text}",
    separator="\n\n",
    closing="\n</information>\n",
    nothing_found="No passage was found. Try other words.",
    invalid=(
        "\nThat turn was not valid: {reason}. Write a query between <search> and </search>, "
        "or the final answer between <answer> and </answer>.\n"
    ),
    searches_used="\nNo searches are left. Write the final answer between <answer> and </answer> now.\n",
    answer_only=(
        "\nThat turn was not valid: {reason}. There is nothing to search here: "
        "write the final answer between <answer> and </answer>.\n"
    ),
    last_turn="\nThis is the last turn: write the final answer between <answer> and </answer>.\n",
)

SEARCH_R1 = Preset(
    search=(
        "Give the answer to the question below. "
        "Whenever you receive new information, reason about it inside <think> and </think> before anything else. "
        "If your reasoning shows that knowledge is missing, call the search engine with "
        "<search> query </search>; the top results are returned between <information> and </information>. "
        "There is no limit on how often you search. "
        "Once nothing more is needed from outside, state the answer inside <answer> and </answer> with no "
        "further explanation, like this: <answer> Beijing </answer>. Question: {question}\n"
    ),
    direct=(
        "Give the answer to the question below inside <answer> and </answer> with no further explanation, "
        "like this: <answer> Beijing </answer>. Question: {question}\n"
    ),
    cot=(
        "Give the answer to the question below. First reason step by step inside <think> and </think>, then state "
        "the answer inside <answer> and </answer>, like this: <answer> Beijing </answer>. Question: {question}\n"
    ),
    rag=(
        "Give the answer to the question below, using the passages retrieved for it. "
        "First reason inside <think> and </think>, then state the answer inside <answer> and </answer>, "
        "like this: <answer> Beijing </answer>.{passages}Question: {question}\n"
    ),
    opening="\n\n<information>",
    passage='Doc {number}(Title: "{title}") {text}',
    separator="\n",
    closing="</information>\n\n",
    nothing_found="No passage was found.",
    invalid=(
        "\nThe last action was invalid. To search, the query has to stand between <search> and </search>. "
        "To answer, the answer has to stand between <answer> and </answer>. Let me try again.\n"
    ),
    searches_used="\nNo searches are left. The answer has to stand between <answer> and </answer>.\n",
    answer_only=(
        "\nThe last action was invalid. To answer, the answer has to stand between <answer> and </answer>. "
        "Let me try again.\n"
    ),
    lenient=True,
    hard_cut=True,
    question_mark=True,
)
"""Search-R1's protocol. Its information block, and the plain question line at the end of one user
message, are byte for byte those of its training code (``generation.py``: ``_passages2string``, which strips the
joined passages; here each passage is stripped). The instruction and the hints say the same in our own words."""

MINIMAL = Preset(
    search="Question: {question}\n",
    direct="Question: {question}\n",
    cot="Question: {question}\n",
    rag="{passages}Question: {question}\n",
    opening="<information>\n",
    passage="{text}",
    separator="\n",
    closing="\n</information>\n",
    nothing_found="nothing found",
    invalid="search or answer\n",
    searches_used="answer now\n",
    answer_only="answer\n",
    chat=False,
)
"""For a policy trained from scratch: it needs no instruction, and the world's passages name their subject."""

SHORT = Preset(
    search="Think, then <search> a few words </search> or <answer> a few words </answer>.\nQuestion: {question}\n",
    direct="Write only <answer> a few words </answer>.\nQuestion: {question}\n",
    cot="Think, then <answer> a few words </answer>.\nQuestion: {question}\n",
    rag="Think, then <answer> a few words </answer>.\n{passages}Question: {question}\n",
    opening="\n<information>\n",
    passage="{title}\n{text}",
    separator="\n\n",
    closing="\n</information>\n",
    nothing_found="Nothing new was found.",
    invalid="\nNot valid: {reason}. <search> or <answer>.\n",
    searches_used="\nNo searches are left: <answer>.\n",
    answer_only="\nNot valid: {reason}. <answer>.\n",
    chat=False,
)
"""For a small policy that demonstrations teach the form: one line of plain text, and rows of a few hundred tokens."""

PRESETS = {"sleuth": SLEUTH, "search_r1": SEARCH_R1, "minimal": MINIMAL, "short": SHORT}
