"""Questions from public data sets as released.

Reads FlashRAG, HotpotQA, 2WikiMultihopQA, MuSiQue, NQ-open, TriviaQA, PopQA and Bamboogle, and what Search-R1's
preparation writes for verl.

The layout is detected from the first row; all other rows must have the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sleuth.rows import RawRow, name_of, read_rows
from sleuth.types import Question, SolvedStep

SupportingFacts = tuple[tuple[str, int], ...]
"""(title, sentence number from 0) pairs."""


def load_questions(source: str | Path, *, limit: int | None = None, allow_unanswered: bool = False) -> list[Question]:
    """The questions of a file or hub dataset: the first ``limit``, or all.

    Test releases have no answers and are refused unless ``allow_unanswered``. Raises DataError naming
    file and line for a row without a question or answers, or with a duplicate id.
    """
    rows = read_rows(source, limit)
    return questions_from_rows(rows, name_of(source), file=str(source), allow_unanswered=allow_unanswered)


def questions_from_rows(
    rows: Sequence[RawRow], name: str, *, file: str = "", allow_unanswered: bool = False
) -> list[Question]:
    """Rows of ``file`` as questions; in a layout without ids they are called ``name-1``, ``name-2``, ..."""
    convert = LAYOUTS[layout_of(rows[0])]
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for row in rows:
        question = replace(convert(row, name), file=file)
        if not question.answers and not allow_unanswered:
            raise row.error("no answers", "questions without answers, as in a test release, cannot be scored")
        if question.id in seen:
            raise row.error(f"duplicate id '{question.id}', first used at {seen[question.id]}", "ids must be unique")
        seen[question.id] = row.where
        questions.append(question)
    return questions


def load_supporting_facts(source: str | Path, limit: int | None = None) -> dict[str, SupportingFacts]:
    """Supporting sentences by question id in a HotpotQA or 2WikiMultihopQA release; empty for other layouts."""
    rows = read_rows(source, limit)
    if layout_of(rows[0]) != "hotpotqa":
        return {}
    facts = {row.text("_id", "id"): supporting_facts(row, row.fields) for row in rows}
    return {question: found for question, found in facts.items() if found}


def layout_of(row: RawRow) -> str:
    """The layout of a row. Raises DataError if it is not a known one."""
    fields = row.fields.keys()
    if {"prompt", "reward_model"} <= fields:
        return "search_r1"
    if "golden_answers" in fields:
        return "flashrag"
    if fields & {"question_decomposition", "paragraphs"}:
        return "musique"
    if fields & {"supporting_facts", "context"}:
        return "hotpotqa"
    if "possible_answers" in fields:
        return "popqa"
    if isinstance(row.fields.get("Answer", row.fields.get("answer")), Mapping) or "QuestionId" in fields:
        return "triviaqa"
    if {"Question", "Answer"} <= fields:
        return "bamboogle"
    if "question" in fields:
        return "nq"
    shown = ", ".join(sorted(fields)[:6]) or "nothing"
    raise row.error(f"not a known question layout (its fields: {shown})", f"known: {', '.join(LAYOUTS)}")


def musique_support(row: RawRow) -> list[Mapping[str, Any]]:
    """The supporting paragraphs in the order of the question's decomposition."""
    paragraphs = row.fields.get("paragraphs") or []
    try:
        by_index = {paragraph["idx"]: paragraph for paragraph in paragraphs}
        steps = row.fields.get("question_decomposition") or []
        needed = [step["paragraph_support_idx"] for step in steps]
        rest = [p["idx"] for p in paragraphs if p.get("is_supporting")]
        return [by_index[i] for i in dict.fromkeys([*needed, *rest]) if i in by_index]
    except (KeyError, TypeError) as error:
        raise row.error(f"broken paragraphs or decomposition: {error!r}") from None


def supporting_facts(row: RawRow, fields: Mapping[str, Any]) -> SupportingFacts:
    """Pairs, or the hub's two columns {"title": [...], "sent_id": [...]}, as pairs."""
    facts = fields.get("supporting_facts") or []
    try:
        if isinstance(facts, Mapping):
            facts = list(zip(facts["title"], facts["sent_id"], strict=True))
        return tuple((str(title), int(sentence)) for title, sentence in facts)
    except (KeyError, TypeError, ValueError):
        raise row.error("broken 'supporting_facts'", "it must be a list of [title, sentence number]") from None


def _search_r1(row: RawRow, name: str) -> Question:
    """A row prepared for verl. Its ids are those of its data sets, which share ``train_0``; its kind is the data set.

    The preparation keeps the released columns beside its own; where they are gone, the question stands in the prompt.
    """
    source, extra = str(row.fields.get("data_source") or ""), _mapping(row, "extra_info")
    truth = _mapping(row, "reward_model").get("ground_truth")
    target = truth.get("target") if isinstance(truth, Mapping) else truth
    answers = _texts(RawRow(row.where, row.number, {"ground_truth.target": target}), "ground_truth.target")
    known = [source, str(extra.get("split") or ""), extra.get("index")]
    identity = _id(row, name) if known[2] is None else "-".join(str(part) for part in known if part != "")
    metadata = _mapping(row, "metadata")
    titles = _titles(row, _supporting_titles(row, metadata))
    return _with_golds(Question(identity, _asked(row, extra), answers, titles, source), row, metadata)


def _asked(row: RawRow, extra: Mapping[str, Any]) -> str:
    if row.fields.get("question") is not None:
        return row.text("question")
    if isinstance(extra.get("question"), str):
        return RawRow(row.where, row.number, dict(extra)).text("question")
    prompt = row.fields["prompt"]
    try:
        said = prompt if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] == "user"][-1]
        _, marked, asked = said.partition("Question:")
    except (KeyError, TypeError, IndexError, AttributeError):
        raise row.error("'prompt' is not a list of {role, content} with one of the user's") from None
    if not marked and "<" in said:  # instructions with tags would be asked as part of the question
        raise row.error("its prompt has no 'Question:', after which the question would stand", "add a column question")
    return RawRow(row.where, row.number, {"prompt": asked if marked else said}).text("prompt")


def _mapping(row: RawRow, key: str) -> Mapping[str, Any]:
    value = row.fields.get(key) or {}
    if not isinstance(value, Mapping):
        raise row.error(f"'{key}' is not an object")
    return value


def _supporting_titles(row: RawRow, metadata: Mapping[str, Any]) -> Iterable[Any]:
    return metadata.get("supporting_titles") or [title for title, _ in supporting_facts(row, metadata)]


def _flashrag(row: RawRow, name: str) -> Question:
    metadata = _mapping(row, "metadata")
    titles = _supporting_titles(row, metadata)
    question = Question(
        _id(row, name),
        row.text("question"),
        _texts(row, "golden_answers"),
        _titles(row, titles),
        _kind(metadata),
    )
    return _with_golds(question, row, metadata)


def _hotpotqa(row: RawRow, name: str) -> Question:
    titles = [title for title, _ in supporting_facts(row, row.fields)]
    kind = str(row.fields.get("type") or "")
    return Question(_id(row, name), row.text("question"), _texts(row, "answer"), _titles(row, titles), kind)


def _musique(row: RawRow, name: str) -> Question:
    if row.fields.get("answerable") is False:
        raise row.error("this question is marked unanswerable", "use the release of answerable questions, musique_ans")
    identity = _id(row, name)
    hops = re.match(r"\d+hop", identity)
    titles = [paragraph["title"] for paragraph in musique_support(row)]
    answers = (*_texts(row, "answer"), *_texts(row, "answer_aliases"))
    return Question(
        identity,
        row.text("question"),
        tuple(dict.fromkeys(answers)),
        _titles(row, titles),
        hops.group() if hops else "",
        steps=_steps(row, row.fields.get("question_decomposition") or [], "question_decomposition"),
    )


def _nq(row: RawRow, name: str) -> Question:
    answers = next((_texts(row, key) for key in ("answer", "answers") if row.fields.get(key)), ())
    return Question(_id(row, name), row.text("question"), answers, (), str(row.fields.get("type") or ""))


def _triviaqa(row: RawRow, name: str) -> Question:
    """Capitalised keys as released, or lower-case ones as on the hub; all aliases of the answer are accepted.

    Test questions have no answer in the release, and the answer ``<unk>`` on the hub.
    """
    del name
    given = row.fields.get("Answer", row.fields.get("answer")) or {}
    inner = RawRow(row.where, row.number, {str(key).lower(): value for key, value in given.items()})
    texts = [text for key in ("value", "aliases") for text in _texts(inner, key) if text != "<unk>"]
    identity = row.text("QuestionId", "question_id")
    return Question(identity, row.text("Question", "question"), tuple(dict.fromkeys(texts)))


def _popqa(row: RawRow, name: str) -> Question:
    """``possible_answers`` is JSON inside a column; the subject's page is the supporting title."""
    try:
        answers = json.loads(row.text("possible_answers"))
    except ValueError:
        raise row.error("'possible_answers' is not a JSON list of strings") from None
    answers = _texts(RawRow(row.where, row.number, {"possible_answers": answers}), "possible_answers")
    title = row.fields.get("s_wiki_title")
    titles = _titles(row, [title] if title else [])
    return Question(_id(row, name), row.text("question"), answers, titles, str(row.fields.get("prop") or ""))


def _bamboogle(row: RawRow, name: str) -> Question:
    return Question(_id(row, name), row.text("Question"), _texts(row, "Answer"))


LAYOUTS: dict[str, Callable[[RawRow, str], Question]] = {
    "search_r1": _search_r1,
    "flashrag": _flashrag,
    "hotpotqa": _hotpotqa,
    "musique": _musique,
    "nq": _nq,
    "triviaqa": _triviaqa,
    "popqa": _popqa,
    "bamboogle": _bamboogle,
}


def _id(row: RawRow, name: str) -> str:
    value = next((row.fields[key] for key in ("_id", "id") if row.fields.get(key) is not None), None)
    if value is None:
        return f"{name}-{row.number}"
    if not isinstance(value, str | int) or not str(value).strip():
        raise row.error("'id' is neither a string nor a number")
    return str(value)


def _texts(row: RawRow, key: str) -> tuple[str, ...]:
    """A field with a string or a list of strings; blank ones are dropped."""
    value = row.fields.get(key)
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise row.error(f"'{key}' is neither a string nor a list of strings")
    return tuple(dict.fromkeys(text.strip() for text in values if text.strip()))


def _kind(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("type") or metadata.get("kind") or "")


def _with_golds(question: Question, row: RawRow, metadata: Mapping[str, Any]) -> Question:
    """``question`` with what FlashRAG's ``metadata`` says of its gold passages and of how it was solved."""
    return replace(
        question,
        pack=str(metadata.get("pack") or ""),
        gold_ids=_gold_ids(row, metadata),
        alternatives=_alternatives(row, metadata, _kind(metadata)),
        steps=_steps(row, metadata.get("steps") or [], "metadata.steps"),
    )


def _gold_ids(row: RawRow, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    ids = metadata.get("gold_ids") or []
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise row.error("'metadata.gold_ids' is not a list of passage ids")
    return tuple(dict.fromkeys(ids))


def _alternatives(row: RawRow, metadata: Mapping[str, Any], kind: str) -> bool:
    """Whether one gold passage is enough, as where all were labelled for having the answer (distant supervision)."""
    said = metadata.get("alternatives")
    if said is not None and not isinstance(said, bool):
        raise row.error("'metadata.alternatives' is neither true nor false")
    return distant(kind) if said is None else said


def distant(kind: str) -> bool:
    """Whether questions of this kind have alternative golds unless a row says otherwise."""
    return "distant" in kind


def _steps(row: RawRow, steps: Any, where: str) -> tuple[SolvedStep, ...]:
    try:
        pairs = [(step["question"], step["answer"]) for step in steps]
    except (KeyError, TypeError):
        pairs = [(None, None)]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise row.error(f"broken '{where}'", "each step needs a question and an answer, both texts")
    return tuple(SolvedStep(*pair) for pair in pairs)


def _titles(row: RawRow, titles: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(titles))
    if not all(isinstance(title, str) for title in found):
        raise row.error("a supporting title is not a string")
    return found
