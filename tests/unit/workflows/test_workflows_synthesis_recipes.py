"""Each recipe with a scripted writer: what it asks, what rows come of the replies, what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_writer import ScriptedWriter, WeighingWriter, write_corpus
from test_workflows_synthesis import rejects_in, rows_in, run, settings_of

from agent.writing.asks import Ask
from retrieval.bm25 import build_bm25
from retrieval.training.config import SourceSettings
from retrieval.training.rows import TrainingRow, load_rows, write_rows
from sleuth.errors import ConfigError
from sleuth.types import Passage
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.recipes.config import RecipeSettings
from workflows.synthesis.recipes.gecko import fused, with_seed
from workflows.synthesis.templates import load_template, templates


def step_of(ask: Ask) -> str:
    return ask.key.split("/")[-2]


def test_e5_thinks_up_tasks_and_writes_a_row_of_each(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        if step_of(ask).startswith("tasks_"):
            return 'Sure!\n```json\n["Find a cure.", "Find a tool.", "Find a cure."]\n```'
        number = step_of(ask).rpartition("-")[2]
        if number == "1" and ask.key.startswith("0/"):
            return '{"query": "cut off, "positive"'
        row = {"query": f"query {ask.key}", "positive": "good " * 6, "hard_negative": "bad " * 6}
        return f"Here it is: {json.dumps(row)}"

    writer = ScriptedWriter(say)
    settings = settings_of(tmp_path, recipe={"kind": "e5", "tasks": 5, "languages": ["Dutch"]}, limit=3)
    record = run(settings, writer)
    rows = rows_in(tmp_path)
    assert (record["kept"], len(rejects_in(tmp_path))) == (5, 1)  # two different tasks of each of three
    assert {row["instruction"] for row in rows} == {"Find a cure.", "Find a tool."}
    assert all(row["made"]["language"] == "Dutch" and row["made"]["shape"] for row in rows)
    assert all(row["negative_passages"][0]["text"].startswith("bad") for row in rows)
    asked = [ask for ask in writer.asked if step_of(ask).startswith("row_")]
    assert all("Dutch" in ask.messages[-1].text and "{" not in ask.messages[-1].text.split("JSON")[0] for ask in asked)
    assert all(ask.schema and ask.schema["required"] == ["query", "positive", "hard_negative"] for ask in asked)


def test_gecko_takes_the_first_of_the_neighbours_as_positive_and_a_low_one_as_negative(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    build_bm25(corpus, tmp_path / "bm25")

    def say(ask: Ask) -> str:
        return json.dumps({"task": "Find wares.", "query": "number 3 made paper in Dunmore"})

    recipe = {"kind": "gecko", "retriever": {"kind": "bm25", "index": str(tmp_path / "bm25")}, "neighbours": 4}
    settings = settings_of(tmp_path / "run", corpus=str(corpus), recipe=recipe)
    record = run(settings, WeighingWriter(say))
    rows = rows_in(tmp_path / "run")
    assert {row["positive_passages"][0]["docid"] for row in rows} == {"p3"}
    assert record["other_positive"] == 11 and all(row["instruction"] == "Find wares." for row in rows)
    assert all(row["negative_passages"][0]["docid"] != "p3" for row in rows)
    assert all((row["made"]["seed_rank"] == 1) == (row["made"]["seed_passage"] == "p3") for row in rows)
    assert record["cost"]["weighed"] == 12 * 4 * 3
    with pytest.raises(ConfigError, match="does not say how likely"):
        run(settings_of(tmp_path / "other", corpus=str(corpus), recipe=recipe), ScriptedWriter(say))


def test_rankings_are_fused_by_reciprocal_rank() -> None:
    assert fused([[0.1, 0.3, 0.2]], 60) == [1, 2, 0]
    # ranks 1, 3 / 2, 1 / 3, 2 with constant 0: 1 + 1/3, 1/2 + 1, 1/3 + 1/2
    assert fused([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]], 0) == [1, 0, 2]
    assert fused([[None, 1.0]], 60) == [1, 0]
    seed, other = Passage("s", "", "s"), Passage("o", "", "o")
    assert with_seed([other, other, seed], seed, 2) == [other, seed]
    assert with_seed([other, Passage("x", "", "x")], seed, 2) == [other, seed]


def test_reasonir_writes_at_length_and_negatives_in_a_further_turn(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        if step_of(ask) == "long_query":
            words = next(int(word) for word in ask.messages[-1].text.split() if word.isdecimal() and len(word) > 1)
            return "word " * (words if "Arden" not in ask.messages[-1].text else 3)
        return {"document": "the document", "hard_query": "a hard question"}.get(step_of(ask), "a negative")

    writer = ScriptedWriter(say)
    recipe = {"kind": "reasonir", "words": [20, 40], "negatives": 2}
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path, 4)), recipe=recipe)
    run(settings, writer)
    rows = rows_in(tmp_path / "run")
    long, hard = ([row for row in rows if row["made"]["part"] == part] for part in ("varied_length", "hard_query"))
    assert len(long) == 3 and len(hard) == 4
    assert all(20 <= row["made"]["asked_words"] == len(row["query"].split()) <= 40 for row in long)
    assert all(row["positive_passages"][0]["text"] == "the document" for row in long)
    assert {row["positive_passages"][0]["docid"] for row in hard} == {"p0", "p1", "p2", "p3"}
    assert [reject["reason"] for reject in rejects_in(tmp_path / "run")] == ["the query is shorter than asked for"]
    last = next(ask for ask in writer.asked if step_of(ask) == "negative-2-1")
    roles = [message.role for message in last.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"] and last.messages[1].text == "a hard question"


def test_qwen3_chooses_who_asks_and_then_asks_in_that_manner(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        if step_of(ask) == "setting":
            return '{"persona": "a nurse", "type": "keyword", "difficulty": "school",}'
        return json.dumps({"instruction": "Find wares.", "query": f"wares {ask.key}"})

    writer = ScriptedWriter(say)
    recipe = {"kind": "qwen3", "per_passage": 2, "languages": ["Twi"], "choices": {"length": ["one word"]}}
    run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), recipe=recipe, limit=6), writer)
    rows = rows_in(tmp_path / "run")
    assert len(rows) == 6 and len({row["positive_passages"][0]["docid"] for row in rows}) == 3
    made = rows[0]["made"]
    assert (made["persona"], made["language"], made["length"]) == ("a nurse", "Twi", "one word")
    text = next(ask.messages[-1].text for ask in writer.asked if step_of(ask) == "query")
    assert "You are a nurse" in text and "in one word, in Twi" in text
    offered = next(ask.messages[-1].text for ask in writer.asked if step_of(ask) == "setting")
    assert sum(line.startswith("- ") for line in offered.splitlines()) == 5


def test_real_rows_are_reworded_and_taken_apart(tmp_path: Path) -> None:
    first, second, wrong = (Passage(f"d{i}", f"T{i}", f"text number {i}") for i in range(3))
    rows = [
        TrainingRow("two", "Where was the director born?", (first, second), (wrong,), ("Oslo",)),
        TrainingRow("one", "what is it?", (first,), (wrong,), instruction="Find it."),
    ]
    write_rows(rows, tmp_path / "rows.jsonl")

    def say(ask: Ask) -> str:
        replies = {
            "paraphrase": "Question: WHERE was the director born" if "director" in ask.messages[-1].text else "Which?",
            "decontextualise": "What is T0?",
            "decompose": '[{"search": "director", "passage": 1}, {"search": "his birth", "passage": "[2]"}]',
        }
        return replies[step_of(ask)]

    recipe = {"kind": "rewrites", "into": ["paraphrase", "decontextualise", "decompose"]}
    run(
        settings_of(tmp_path / "run", recipe=recipe, data=[{"path": str(tmp_path / "rows.jsonl")}]), ScriptedWriter(say)
    )
    made = {(row["made"]["original_id"], row["made"]["into"], row["query"]): row for row in rows_in(tmp_path / "run")}
    assert made.keys() == {
        ("one", "paraphrase", "Which?"),
        ("one", "decontextualise", "What is T0?"),
        ("two", "decontextualise", "What is T0?"),
        ("two", "decompose", "director"),
        ("two", "decompose", "his birth"),
    }
    assert made["two", "decompose", "his birth"]["positive_passages"][0]["docid"] == "d1"
    assert made["one", "paraphrase", "Which?"]["instruction"] == "Find it."
    assert made["two", "decontextualise", "What is T0?"]["answers"] == ["Oslo"]
    reasons = {(reject["id"].partition("-")[0], reject["reason"]) for reject in rejects_in(tmp_path / "run")}
    assert reasons == {("two", "the same as before"), ("one", "one passage only")}
    again = load_rows([SourceSettings(path=str(SynthesisLayout(tmp_path / "run").rows))])
    assert all(row.negatives == (wrong,) for row in again)


def test_every_recipe_has_a_template_that_fits_it() -> None:
    values: dict[str, dict[str, Any]] = {"gecko": {"retriever": {"kind": "bm25", "index": "i"}}}
    for kind in RecipeSettings.KINDS:
        settings = RecipeSettings.of(kind=kind, **values.get(kind, {}))
        recipe = settings.open()
        template = load_template(settings.template_name, recipe.steps, {})
        assert template.about and template.steps.keys() >= recipe.steps.keys()
    assert set(RecipeSettings.KINDS) < set(templates())


def test_a_template_of_ones_own_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    steps = {"query": ("title", "passage")}
    path.write_text("steps: {query: {messages: [{user: 'Ask in {tone} about {passage} {\"a\": 1}'}]}}\n")
    with pytest.raises(ConfigError, match=r"slot \{tone\} that nothing fills"):
        load_template(str(path), steps, {})
    template = load_template(str(path), steps, {"tone": ["anger"]})
    assert (
        template.steps["query"].fill({"tone": "anger", "passage": "{title}"})[0].text
        == 'Ask in anger about {title} {"a": 1}'
    )
    path.write_text("steps: {qurey: {messages: [{user: x}]}}\n")
    with pytest.raises(ConfigError, match="has no step 'query'"):
        load_template(str(path), steps, {})
    path.write_text("steps: {query: {messages: [{user: x}, {assistant: y}]}}\n")
    with pytest.raises(ConfigError, match="the last message must be the user's"):
        load_template(str(path), steps, {})
    with pytest.raises(ConfigError, match="did you mean 'queries'"):
        load_template("querys", steps, {})
