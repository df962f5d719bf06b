"""Every layout of the field is read, and every broken row is named."""

import json
import os
from pathlib import Path

import pytest

from envs.plans import question_row
from envs.questions import load_questions, load_supporting_facts, questions_from_rows
from sleuth.errors import DataError
from sleuth.rows import RawRow, name_of, read_rows
from sleuth.types import Question, SolvedStep

FLASHRAG = {
    "id": "f1",
    "question": "Who wrote Peer Gynt?",
    "golden_answers": ["Ibsen", "Henrik Ibsen", "Ibsen", " "],
    "metadata": {"type": "bridge", "supporting_titles": ["Peer Gynt"]},
}
HOTPOT = {
    "_id": "h1",
    "question": "Are A and B cities?",
    "answer": "yes",
    "type": "comparison",
    "level": "easy",
    "supporting_facts": [["A", 0], ["B", 1], ["A", 2]],
    "context": [["A", ["A is a city.", " It is old.", " Very old."]], ["B", ["Hello.", " B is a city."]]],
}
MUSIQUE = {
    "id": "3hop1__1_2_3",
    "question": "Where was the author of X born?",
    "answer": "Skien",
    "answer_aliases": ["Skien, Norway", "Skien"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Noise", "paragraph_text": "n", "is_supporting": False},
        {"idx": 1, "title": "Ibsen", "paragraph_text": "i", "is_supporting": True},
        {"idx": 2, "title": "X", "paragraph_text": "x", "is_supporting": True},
    ],
    "question_decomposition": [
        {"id": 1, "question": "X >> author", "answer": "Ibsen", "paragraph_support_idx": 2},
        {"id": 2, "question": "Where was #1 born ?", "answer": "Skien", "paragraph_support_idx": 1},
    ],
}
NQ = {"question": "who wrote peer gynt", "answer": ["Henrik Ibsen"]}


def lines(path: Path, *rows) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_flashrag(tmp_path):
    (question,) = load_questions(lines(tmp_path / "q.jsonl", FLASHRAG))
    assert question == Question("f1", "Who wrote Peer Gynt?", ("Ibsen", "Henrik Ibsen"), ("Peer Gynt",), "bridge")


def test_flashrag_as_published_names_support_by_columns(tmp_path):
    row = {**FLASHRAG, "metadata": {"type": "x", "supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}}}
    assert load_questions(lines(tmp_path / "q.jsonl", row))[0].supporting_titles == ("A", "B")


STEPS = [{"question": "X >> author", "answer": "Ibsen"}, {"question": "Where was #1 born ?", "answer": "Skien"}]
SOLVED = tuple(SolvedStep(**step) for step in STEPS)


def test_flashrag_with_gold_passages(tmp_path):
    metadata = {"kind": "2hop", "pack": "musique", "gold_ids": ["p2", "p1", "p2"], "steps": STEPS}
    (question,) = load_questions(lines(tmp_path / "q.jsonl", {**FLASHRAG, "metadata": metadata}))
    answers, file = ("Ibsen", "Henrik Ibsen"), str(tmp_path / "q.jsonl")
    wanted = Question("f1", "Who wrote Peer Gynt?", answers, (), "2hop", file, "musique", ("p2", "p1"), False, SOLVED)
    assert question == wanted
    assert load_questions(lines(tmp_path / "again.jsonl", question_row(question))) == [wanted]


@pytest.mark.parametrize(
    ("metadata", "alternatives"),
    [
        ({"kind": "nq-distant"}, True),
        ({"kind": "nq-annotated"}, False),
        ({"kind": "nq-distant", "alternatives": False}, False),
        ({"alternatives": True}, True),
    ],
)
def test_distant_golds_are_alternatives_unless_the_row_says_so(tmp_path, metadata, alternatives):
    row = {**FLASHRAG, "metadata": {**metadata, "gold_ids": ["a", "b"]}}
    (question,) = load_questions(lines(tmp_path / "q.jsonl", row))
    assert question.alternatives is alternatives
    (again,) = load_questions(lines(tmp_path / "again.jsonl", question_row(question)))
    assert again == question


@pytest.mark.parametrize("indent", [None, 2])
def test_hotpotqa_and_2wiki(tmp_path, indent):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([HOTPOT, {**HOTPOT, "_id": "h2"}], indent=indent))
    first, second = load_questions(path)
    assert first == Question("h1", "Are A and B cities?", ("yes",), ("A", "B"), "comparison")
    assert second.id == "h2"
    assert load_supporting_facts(path)["h1"] == (("A", 0), ("B", 1), ("A", 2))
    assert load_questions(path, limit=1) == [first]


def test_musique(tmp_path):
    path = lines(tmp_path / "m.jsonl", MUSIQUE)
    (question,) = load_questions(path)
    assert question.answers == ("Skien", "Skien, Norway")
    assert question.supporting_titles == ("X", "Ibsen"), "in the order of the decomposition"
    assert question.kind == "3hop"
    assert question.steps == SOLVED
    assert load_supporting_facts(path) == {}


def test_nq_rows_are_numbered(tmp_path):
    questions = load_questions(lines(tmp_path / "NQ-open.dev.jsonl", NQ, NQ))
    assert [q.id for q in questions] == ["NQ-open.dev-1", "NQ-open.dev-2"]
    assert questions[0].answers == ("Henrik Ibsen",)


TRIVIA = {
    "Answer": {"Value": "Henrik Ibsen", "Aliases": ["Ibsen", "Henrik Ibsen"], "NormalizedAliases": ["ibsen"]},
    "Question": "Who wrote Peer Gynt?",
    "QuestionId": "tc_1",
}


@pytest.mark.parametrize("indent", [None, 4])
def test_triviaqa_as_released_and_as_on_the_hub(tmp_path, indent):
    path = tmp_path / "web-dev.json"
    path.write_text(json.dumps({"Data": [TRIVIA], "Domain": "Web", "Version": 1.0}, indent=indent))
    (question,) = load_questions(path)
    assert question == Question("tc_1", "Who wrote Peer Gynt?", ("Henrik Ibsen", "Ibsen"))
    answer = {"aliases": ["Ibsen", "Henrik Ibsen"], "normalized_aliases": ["ibsen"], "value": "Henrik Ibsen"}
    hub = {"question": "Who wrote Peer Gynt?", "question_id": "tc_1", "answer": answer}
    assert questions_from_rows([RawRow("hf://o/n/s, row 1", 1, hub)], "hub") == [question]


@pytest.mark.parametrize(
    "row",
    [
        {"Question": "Who?", "QuestionId": "tc_1"},
        {"question": "Who?", "question_id": "tc_1", "answer": {"value": "<unk>", "aliases": []}},
    ],
)
def test_triviaqa_test_questions_can_be_answered_and_not_scored(row):
    rows = [RawRow("test, row 1", 1, row)]
    with pytest.raises(DataError, match="no answers"):
        questions_from_rows(rows, "test")
    assert questions_from_rows(rows, "test", allow_unanswered=True) == [Question("tc_1", "Who?", ())]


def test_popqa(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text(
        "id\tsubj\tprop\tobj\tpossible_answers\tquestion\ts_wiki_title\n"
        '7\tPeer Gynt\tauthor\tIbsen\t"[""Ibsen"", ""Henrik Ibsen""]"\tWho wrote Peer Gynt?\tPeer Gynt (play)\n'
    )
    (question,) = load_questions(path)
    wanted = Question("7", "Who wrote Peer Gynt?", ("Ibsen", "Henrik Ibsen"), ("Peer Gynt (play)",), "author")
    assert question == wanted


def test_bamboogle(tmp_path):
    path = tmp_path / "bamboogle.csv"
    path.write_text('Question,Answer\n"Who, of all, wrote it?",Ibsen\n')
    assert load_questions(path) == [Question("bamboogle-1", "Who, of all, wrote it?", ("Ibsen",))]
    path.write_text("Question,Answer\nWho?\n")
    with pytest.raises(DataError, match="line 2: the number of columns differs"):
        load_questions(path)


def test_rows_of_the_hub():
    row = {
        "id": "h1",
        "question": "Are A and B cities?",
        "answer": "yes",
        "type": "comparison",
        "supporting_facts": {"title": ["A", "B"], "sent_id": [0, 1]},
        "context": {"title": ["A", "B"], "sentences": [["A."], ["B.", "C."]]},
    }
    (question,) = questions_from_rows([RawRow("hf://o/n/s, row 1", 1, row)], "hub")
    assert question == Question("h1", "Are A and B cities?", ("yes",), ("A", "B"), "comparison")
    assert name_of("hf://owner/name/config/split") == "owner-name-config-split"


def test_a_hub_dataset_goes_through_the_datasets_library(monkeypatch):
    calls = []

    def load_dataset(path, name, *, split):
        calls.append((path, name, split))
        return [FLASHRAG]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_questions("hf://owner/name/nq/test")[0].id == "f1"
    assert load_questions("hf://owner/name/test", limit=1)[0].id == "f1"
    assert calls == [("owner/name", "nq", "test"), ("owner/name", None, "test")]
    with pytest.raises(DataError, match="does not name a dataset split"):
        load_questions("hf://nq")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load_dataset(path, name, *, split):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match="cannot load hf://owner/name/test: no route"):
        load_questions("hf://owner/name/test")


def test_byte_order_mark_blank_lines_and_line_separators(tmp_path):
    path = tmp_path / "q.jsonl"
    row = json.dumps({**FLASHRAG, "question": "odd\u2028line"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\n\n".encode())
    assert load_questions(path)[0].text == "odd\u2028line"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", "", "q.jsonl has no rows"),
        ("q.json", "[]", "q.json has no rows"),
        ("q.jsonl", "\n \n", "has no rows"),
        ("q.jsonl", '{"id": "a"', "q.jsonl, line 1: broken JSON"),
        ("q.jsonl", json.dumps(FLASHRAG) + "\n{]", "q.jsonl, line 2: broken JSON"),
        ("q.json", '[{"_id": "a", \n "context": [', "q.json, row 1 (line 1): broken JSON"),
        ("q.json", "[" + json.dumps(HOTPOT), "broken JSON after row 1"),
        ("q.json", "[" + json.dumps(HOTPOT) + ",\n]", "q.json, row 2 (line 2): broken JSON"),
        ("q.jsonl", b'{"id": "\xff"}', "q.jsonl, line 1: text in another encoding than UTF-8 (byte 8)"),
        ("q.json", b'[{"id": "\xff"}]', "q.json: text in another encoding than UTF-8 (byte 9)"),
        ("q.jsonl", "3", "q.jsonl, line 1: not a JSON object"),
        ("q.jsonl", '{"text": "x", "_id": "1"}', "not a known question layout (its fields: _id, text)"),
        ("q.jsonl", json.dumps({**FLASHRAG, "question": " "}), "line 1: 'question' is blank"),
        ("q.jsonl", json.dumps({"golden_answers": ["x"]}), "line 1: no 'question'"),
        ("q.jsonl", json.dumps({**FLASHRAG, "golden_answers": []}), "line 1: no answers"),
        ("q.jsonl", json.dumps({**FLASHRAG, "golden_answers": [3]}), "'golden_answers' is neither"),
        ("q.jsonl", json.dumps({**FLASHRAG, "metadata": 3}), "'metadata' is not an object"),
        (
            "q.jsonl",
            json.dumps({**FLASHRAG, "metadata": {"gold_ids": "p1"}}),
            "line 1: 'metadata.gold_ids' is not a list",
        ),
        ("q.jsonl", json.dumps({**FLASHRAG, "metadata": {"gold_ids": [1]}}), "'metadata.gold_ids' is not a list"),
        ("q.jsonl", json.dumps({**FLASHRAG, "metadata": {"alternatives": "no"}}), "neither true nor false"),
        ("q.jsonl", json.dumps({**FLASHRAG, "metadata": {"steps": ["who?"]}}), "line 1: broken 'metadata.steps'"),
        (
            "q.jsonl",
            json.dumps({**MUSIQUE, "question_decomposition": [{"paragraph_support_idx": 1}]}),
            "broken 'question_",
        ),
        ("q.jsonl", f"{json.dumps(FLASHRAG)}\n{json.dumps(FLASHRAG)}", "line 2: duplicate id 'f1', first used at"),
        ("q.jsonl", json.dumps({k: v for k, v in HOTPOT.items() if k != "answer"}), "line 1: no answers"),
        ("q.jsonl", json.dumps({**HOTPOT, "supporting_facts": [["A"]]}), "broken 'supporting_facts'"),
        ("q.jsonl", json.dumps({**MUSIQUE, "answerable": False}), "marked unanswerable"),
        ("q.jsonl", json.dumps({**MUSIQUE, "paragraphs": [{"title": "x"}]}), "broken paragraphs"),
        ("q.jsonl", json.dumps({**NQ, "id": ["x"]}), "'id' is neither"),
        ("q.jsonl", '{"a": ' + "[" * 100_000, "line 1: broken JSON"),
        ("q.json", "[" * 100_000, "row 1 (line 1): broken JSON"),
        ("q.json", '{"Data": ' + "[" * 100_000, "broken JSON"),
        ("q.csv", "id,question\n1,a,b\n", "line 2: the number of columns differs"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        load_questions(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_field_of_a_table_may_be_long(tmp_path):
    context = "x" * 300_000
    (tmp_path / "q.csv").write_text(f"id,question,golden_answers,context\n1,Who?,Ann,{context}\n")
    (row,) = read_rows(tmp_path / "q.csv")
    assert row.fields["context"] == context


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no file"):
        load_questions(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load_questions(tmp_path)


def test_a_test_release_can_be_read_on_request(tmp_path):
    path = lines(tmp_path / "test.jsonl", {k: v for k, v in HOTPOT.items() if k != "answer"})
    assert load_questions(path, allow_unanswered=True)[0].answers == ()


def test_a_limit_reads_no_further(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(FLASHRAG) + "\nbroken")
    assert len(load_questions(path, limit=1)) == 1
    assert len(read_rows(path, 1)) == 1


DATA = os.environ.get("SLEUTH_DATA")


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="SLEUTH_DATA is not set")
def test_real_files_agree_with_each_other():
    folder = Path(DATA) / "hotpotqa"
    flashrag = {q.id: q for q in load_questions(folder / "qa" / "dev.jsonl")}
    official = load_questions(folder / "official" / "hotpot_dev_distractor_sample.json")
    assert len(official) == 50
    for question in official:
        same = flashrag[question.id]
        assert (same.text, same.answers, same.kind) == (question.text, question.answers, question.kind)
        assert set(same.supporting_titles) == set(question.supporting_titles)
    musique = load_questions(Path(DATA) / "musique" / "official" / "musique_ans_train_sample.jsonl")
    assert len(musique) == 100 and {q.kind for q in musique} == {"2hop", "3hop", "4hop"}
    assert all(q.supporting_titles for q in musique)


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="SLEUTH_DATA is not set")
def test_real_questions_name_their_gold_passages():
    dev = load_questions(Path(DATA) / "wiki" / "qa" / "dev.jsonl")
    assert len(dev) == 1731 and all(q.gold_ids and q.kind and q.pack for q in dev)
    assert {(q.kind, q.pack) for q in dev if q.alternatives} == {("nq-distant", "nq")}
    assert sum(q.alternatives for q in dev) == 46
    released = load_questions(Path(DATA) / "wiki" / "official" / "musique_ans_dev.jsonl")
    steps = {q.id: q.steps for q in dev}
    assert len(released) == 15 and all(steps[q.id] == q.steps for q in released)
