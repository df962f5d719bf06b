"""The filters, one by one, and the tolerant reader of replies."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from scripted_writer import ScriptedWriter, WeighingWriter, write_corpus

from agent.writing.asks import Ask
from retrieval.bm25 import build_bm25
from retrieval.training.row import TrainingRow
from sleuth.errors import ConfigError, DataError
from sleuth.types import Passage
from workflows.synthesis.desk import Desk
from workflows.synthesis.filters.base import Bench, Filter
from workflows.synthesis.filters.config import FilterSettings
from workflows.synthesis.filters.texts import count_words
from workflows.synthesis.journal import Journal
from workflows.synthesis.ngrams import ngrams, words_of
from workflows.synthesis.reading import json_values, line, lines, record, sound, whole, yes_no
from workflows.synthesis.script import Unreadable
from workflows.synthesis.writing import Style, Written, written_passage

PASSAGE = Passage("p", "Title", "a passage of quite a few words about a town")


def open_filter(writer: Any = None, corpus: Path | None = None, **values: Any) -> Filter:
    desk = Desk(writer or ScriptedWriter(str), Journal(None))
    bench = Bench(str(values["kind"]), desk, frozenset(), Style(1.0, 1.0, 2, 100), 0, corpus, lambda _: nullcontext())
    return FilterSettings.of(**values).open(bench)


def written(query: str, passage: Passage = PASSAGE, name: str | None = None) -> Written:
    return Written(TrainingRow(name or query, query, (passage,)))


def test_length_counts_words_and_letters_of_scripts_without_spaces() -> None:
    one = open_filter(kind="length", min_words=3, max_words=6, min_passage_words=2)
    rows = [written("two words"), written("three words here"), written("word " * 7), written("法国的首都是哪里呢")]
    rows.append(written("three words here", Passage("q", "", "short")))
    assert one.judge(rows) == ["query too short", None, "query too long", None, "passage too short"]
    assert count_words("  ") == 0 and count_words("กขค and more") == 3


def test_a_label_that_was_written_is_as_short_as_labels_are() -> None:
    label = TrainingRow("q", "the lease was void as nobody signed it", (written_passage("tenancy law"),))
    rows = [Written(label, {"shape": "long_short"}), Written(label, {"shape": "short_long"})]
    assert open_filter(kind="length").judge(rows) == [None, "passage too short"]


def test_a_thought_that_does_not_end_is_no_reply() -> None:
    for read in (whole, line, lines, yes_no, record("query")):
        with pytest.raises(Unreadable, match="a thought without end"):
            read('<think>\nOkay, the user asks {"query": "x"}: yes')
    assert whole("<think>so</think> a town") == "a town"


def test_rows_with_one_id_are_compared_each() -> None:
    one = open_filter(kind="near_duplicates")
    one.keep([written("who made it", name="0"), written("where is that town over there", name="0")])
    assert one.judge([written("where is that town over there now", name="1")]) == ["a similar query"]


def test_languages_are_those_that_can_be_told_apart() -> None:
    rows = [written("Who wrote the opera about the ring?")]
    assert open_filter(kind="language", languages=["EN"]).judge(rows) == [None]
    with pytest.raises(ConfigError, match="no language 'english'"):
        FilterSettings.of(kind="language", languages=["english"]).check()


def test_language_drops_what_is_surely_in_another() -> None:
    one = open_filter(kind="language", languages=["en", "fr"])
    rows = ["Who wrote the opera about the ring?", "Quelle est la capitale de la Norvège ?"]
    german = "Wie heißt die Hauptstadt von Norwegen und wie viele Menschen leben dort?"
    assert one.judge([written(text) for text in (*rows, german, "Ok")]) == [None, None, "in de", None]


def test_queries_like_one_before_are_dropped_within_a_chunk_and_across_chunks() -> None:
    one = open_filter(kind="near_duplicates", threshold=0.6, per_passage=2)
    other = Passage("o", "", "another passage")
    first = [written("Who wrote the opera about the ring?", other), written("who wrote the opera about the ring")]
    assert one.judge(first) == [None, "the same query"]
    one.keep(first[:1])
    later = [
        written("Who wrote the opera about the ring of gold?"),  # 6 of 8 pairs of words are shared
        written("Who wrote the play about a ring?"),
        written("When was the ring found?"),
        written("Where was the river named?"),
    ]
    assert one.judge(later) == ["a similar query", None, None, "enough of this passage"]


def test_no_pair_at_the_threshold_is_missed_by_hashing() -> None:
    """Seven pairs of words in both, three more in the second: .7."""
    one = open_filter(kind="near_duplicates", threshold=0.7)
    queries = [" ".join(f"w{number}x{place}" for place in range(8)) for number in range(200)]
    one.keep([written(query) for query in queries])
    longer = [written(f"{query} more {number} words") for number, query in enumerate(queries)]
    assert one.judge(longer) == ["a similar query"] * 200


@pytest.mark.parametrize(
    ("one", "other"),
    [("ประเทศไทยมีกี่จังหวัด", "ครับ"), ("តើប្រទេសកម្ពុជាមានខេត្តប៉ុន្មាន", "ដែរ"), ("ປະເທດລາວມີຈັກແຂວງ", "ແດ່")],
)
def test_queries_of_scripts_without_spaces_are_alike_by_their_letters(one: str, other: str) -> None:
    verdicts = open_filter(kind="near_duplicates").judge([written(one), written(one + other), written(other)])
    assert verdicts == [None, "a similar query", None]


def test_leakage_is_found_in_every_set_beside_the_corpus_and_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, own = tmp_path / "data", tmp_path / "own"
    corpus = write_corpus(own)
    (own / "qrels").mkdir()
    (own / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nd\tp1\t1\n")
    queries = [{"_id": "d", "text": "Which ware has Brill made?"}, {"_id": "t", "text": "Which ware has Arden made?"}]
    (own / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (data / "far" / "qa").mkdir(parents=True)
    long = "In which of the towns on the river was glass made for the king of the country?"
    (data / "far" / "qa" / "test.jsonl").write_text(json.dumps({"id": "x", "question": long}) + "\n")
    (data / "far" / "qa" / "train.jsonl").write_text(json.dumps({"id": "y", "question": "A train question?"}) + "\n")
    monkeypatch.setenv("SLEUTH_DATA", str(data))
    one = open_filter(kind="leakage", corpus=corpus)
    rows = [
        written("which ware has brill made"),
        written("Which ware has Arden made?"),
        written("Say in which of the towns on the river was silk made?"),
        written("In which of the towns on the lake was glass made?"),
        written("A train question?"),
    ]
    shares = "shares words with a held-out question"
    assert one.judge(rows) == ["a held-out question", None, shares, None, None]
    assert sorted(one.about()["sets"].values()) == [1, 1]  # type: ignore[attr-defined]
    monkeypatch.delenv("SLEUTH_DATA")
    assert open_filter(kind="leakage", corpus=corpus).judge(rows)[2] is None
    named = open_filter(kind="leakage", present=False, against=[str(data / "far" / "qa" / "train.jsonl")])
    assert named.judge(rows) == [None] * 4 + ["a held-out question"]
    with pytest.raises(DataError, match="no file or folder"):
        open_filter(kind="leakage", against=["nowhere"])


def test_round_trip_keeps_what_finds_its_passage_again(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    build_bm25(corpus, tmp_path / "bm25")
    one = open_filter(kind="round_trip", retriever=str(tmp_path / "bm25"), k=1)
    arden, brill = (Passage(f"p{i}", "", "x") for i in range(2))
    rows = [written("glass of Arden", arden), written("glass of Arden", brill, "b"), written("Brill's rope", brill)]
    assert one.judge(rows) == [None, "not among the first 1", None]
    assert one.judge([]) == [] and one.about()["retriever"]
    new = written_passage("A passage that was written about glass.")
    assert one.judge([written("glass", new), written("glass of Arden", brill)]) == [None, "not among the first 1"]


def test_the_writer_judges_whether_a_passage_answers() -> None:
    def say(ask: Ask) -> str:
        text = ask.messages[-1].text
        return "Well, no." if "river" in text else "I cannot say" if "lake" in text else "Yes, it does."

    writer = ScriptedWriter(say)
    one = open_filter(writer, kind="answerable")
    verdicts = one.judge([written("which town"), written("which river"), written("which lake")])
    assert verdicts == [None, "the passage does not answer it", "no verdict"]
    assert [ask.temperature for ask in writer.asked] == [0.0, 0.0, 0.0, 1.0]
    weighed = open_filter(WeighingWriter(say), kind="answerable", by="odds", odds=1.0)
    assert weighed.judge([written("which town")]) == [None]  # the prompt has both words: even odds
    strict = open_filter(WeighingWriter(say), kind="answerable", by="odds", odds=2.0)
    assert strict.judge([written("which town")]) == ["the passage does not answer it"]


def test_words_and_ngrams() -> None:
    assert words_of("Ⅳ. Ünder-ground, 法国!") == ["iv", "ünder", "ground", "法", "国"]
    assert ngrams(["a", "b", "c"], 2) == {"a b", "b c"} and ngrams(["a"], 2) == {"a"} and not ngrams([], 2)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@given(
    st.dictionaries(st.sampled_from(["query", "positive"]), texts, min_size=2),
    st.sampled_from(["", "Sure: ", "```json\n"]),
)
def test_a_json_reply_is_read_whatever_stands_around_it(value: dict[str, str], before: str) -> None:
    read = record("query", "positive")
    expected = {name: text.strip() for name, text in value.items()}
    for written_as in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2), json.dumps([value])):
        assert read(f"<think>no {{</think>{before}{written_as}\n``` That is it.") == expected


@given(st.text())
def test_the_readers_never_fail_in_another_way(text: str) -> None:
    for read in (line, lines, yes_no, record("query"), lambda text: list(json_values(text))):
        try:
            found = read(text)
        except Unreadable:
            continue
        assert found is not None
        json.dumps(found).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Question: "What is it?"\nMore', "What is it?"),
        ("1. **Query:** rivers of Norway", "rivers of Norway"),
        ("<think>hm</think>\n\n- What is it?", "What is it?"),
        ("Rewritten question: Who?", "Who?"),
        ("Question time is when?", "Question time is when?"),
        ("Question 1: What is it?", "What is it?"),
        ("Sure! Here is a question:\nWhat is it?", "What is it?"),
        ("Sure!\n\n## Question\n\nWhat is it?", "What is it?"),
        ("Sure! Here's a question: What is it?", "What is it?"),
        ("**Question**\nWhat is it?", "What is it?"),
        ("```text\nWhat is it?\n```", "What is it?"),
        ("**What is it?**", "What is it?"),
        ("**What** is **it**?", "**What** is **it**?"),
        ('"What" is "X"', '"What" is "X"'),
        ('"Who wrote "Hamlet"?"', 'Who wrote "Hamlet"?'),
        ("'What's it?'", "What's it?"),
        ("Here is Norway?", "Here is Norway?"),
        ("1. FC Köln was founded when?", "1. FC Köln was founded when?"),
        ("Question: 2. Bundesliga top scorer", "2. Bundesliga top scorer"),
        ("1. What is it?\n2. Where is it?", "What is it?"),
        ('1. "What is it?"', "What is it?"),
        ("1) What is it?", "What is it?"),
        ("Here's Johnny: which film says it?", "Here's Johnny: which film says it?"),
        ("Here is the rewritten query: rivers of Norway", "rivers of Norway"),
    ],
)
def test_a_line_is_read_without_what_stands_around_it(text: str, expected: str) -> None:
    assert line(text) == expected


def test_the_first_json_that_fits_is_taken() -> None:
    read = record("query")
    for text in (
        'As passage [1] says: {"query": "x"}',
        '{"draft": 1}\n{"query": "x"}',
        '{"result": {"query": "x"}}',
        'Step {1}: [{"query": "x"}]',
    ):
        assert read(text) == {"query": "x"}
    with pytest.raises(Unreadable, match="no query"):
        read('{"draft": 1} [2]')


@pytest.mark.parametrize(
    "text",
    [
        '[{"task": "find a"}, {"task": "find b"}]',
        '{"tasks": [{"id": 1, "text": "find a"}, {"task": "find b", "why": "c"}]}',
        '{"tasks": {"1": "find a", "2": "find b"}}',
        '{"task_1": "find a", "task_2": "find b"}',
        'As [1] says: ["find a", "find b"]',
        "Here are two tasks:\nfind a\nfind b",
        "```\n- **find a**\n- find b\n```",
        '[{"task": "find a"}, {"task": "find b"}, {"task": "find',
    ],
)
def test_a_list_is_read_in_whatever_form_it_comes(text: str) -> None:
    assert lines(text) == ["find a", "find b"]


def test_json_that_is_no_list_is_none_of_its_lines() -> None:
    for text in ('[{"a": 1}]', '[{"task": "cut off", "why": "x"', '{"query": "x", "positive": "y"}'):
        with pytest.raises(Unreadable):
            lines(text)


def test_a_verdict_stands_alone() -> None:
    said = {"There is no doubt: yes": True, "No doubt. Yes.": True, "Well, no.": False, "**Yes**": True}
    said |= {"Yes it does": True, "It has no answer to it": False, "Answer: no\nIt may be yes": False}
    assert {text: yes_no(text) for text in said} == said


def test_json_as_models_write_it() -> None:
    assert next(json_values("{'query': 'it\\'s', 'n': [1, 2,],}")) == {"query": "it's", "n": [1, 2]}
    assert next(json_values('Note {this}: {"a": "line\nbreak", "b": "}"},')) == {"a": "line\nbreak", "b": "}"}
    assert lines("Tasks:\n1. one\n2) two\n2) two\n") == ["one", "two"] and lines('["a", 3, "b"]') == ["a", "b"]
    assert lines('{"tasks": ["a", "b"]}') == ["a", "b"]
    assert lines('```json\n{\n "tasks": [\n  "a, \\"b\\"",\n  "c",\n  "d is cut') == ['a, "b"', "c"]
    assert lines("[1] one\n[2] two") == ["one", "two"]
    assert sound("a\ud800b\0") == "a?b"
    for broken in ('{"query": "cut', "no json", "", '{"query": 3}', '{"other": "x"}'):
        with pytest.raises(Unreadable):
            record("query")(broken)
