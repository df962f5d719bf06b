"""Each recipe with a scripted writer: what it asks, what rows come of the replies, what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_writer import ScriptedWriter, WeighingWriter, write_corpus
from test_workflows_synthesis import rejects_in, rows_in, run, settings_of

from agent.writing.asks import Ask, Reply
from retrieval.bm25 import build_bm25
from retrieval.training.config import SourceSettings
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows, write_rows
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
    two = run(settings_of(tmp_path / "two", corpus=str(corpus), recipe=recipe, keep=2), WeighingWriter(say))
    other = sum("other_positive" in row["made"] for row in rows_in(tmp_path / "two"))
    assert (two["kept"], two["not_needed"], two["other_positive"]) == (2, 2, other) and other > 0
    assert two["cost"]["weighed"] == 4 * 4 * 3 and two["cost"]["weighed_tokens"] > 20 * two["cost"]["weighed"]
    page = SynthesisLayout(tmp_path / "two").page.read_text("utf-8")
    assert f"48, {two['cost']['weighed_tokens']:,} tokens" in page
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


def test_a_copy_of_the_positive_or_the_seed_is_no_hard_negative_of_gecko(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    texts = {"a": "glass of Arden", "b": "glass of Arden", "c": "rope of Arden by the river", "d": "rope of Arden"}
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()))
    build_bm25(path, tmp_path / "bm25")
    recipe = {"kind": "gecko", "retriever": {"kind": "bm25", "index": str(tmp_path / "bm25")}, "neighbours": 4}
    writer = WeighingWriter(lambda _: json.dumps({"task": "Find wares.", "query": "rope of Arden"}))
    run(settings_of(tmp_path / "run", corpus=str(path), recipe=recipe, passages={"min_words": 1}), writer)
    rows = {row["made"]["seed_passage"]: row for row in rows_in(tmp_path / "run")}
    assert len(rows) == 4
    for seed, row in rows.items():
        (positive,), negatives = row["positive_passages"], row["negative_passages"]
        assert len(negatives) == 1 and negatives[0]["text"] not in (positive["text"], texts[seed])
        assert row["made"]["neighbours"] == 3
    seed, copy, other = Passage("s", "", "s"), Passage("t", "", "s"), Passage("o", "", "o")
    assert with_seed([copy, other, seed], seed, 3) == [seed, other]


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


def test_a_copy_of_the_positive_is_no_negative_of_reasonir(tmp_path: Path) -> None:
    """With its title, in capitals, with other spaces, or as far as it was shown."""
    corpus = write_corpus(tmp_path, 6)
    passages = {row["_id"]: row for row in map(json.loads, corpus.read_text().splitlines())}
    copies = {
        "p0": lambda one: one["text"],
        "p1": lambda one: f"{one['title']}. {one['text']}",
        "p2": lambda one: one["text"].upper(),
        "p3": lambda one: one["text"].replace(" ", "  "),
        "p4": lambda one: " ".join(one["text"].split()[:8]) + " ...",
    }

    def say(ask: Ask) -> str:
        name = ask.key.partition("/")[0]
        if step_of(ask).startswith("negative"):
            return copies[name](passages[name]) if name in copies else "Other towns make other things."
        return "why would one stop at such a place"

    recipe = {"kind": "reasonir", "parts": ["hard_query"]}
    shown = {"min_words": 5, "show_words": 8}
    run(settings_of(tmp_path / "run", corpus=str(corpus), recipe=recipe, passages=shown), ScriptedWriter(say))
    negatives = {row["positive_passages"][0]["docid"]: row["negative_passages"] for row in rows_in(tmp_path / "run")}
    assert {name for name, some in negatives.items() if some} == {"p5"} and len(negatives) == 6


def test_a_positive_that_is_the_query_or_the_negative_is_no_row(tmp_path: Path) -> None:
    text = "the lease is void"

    def say(ask: Ask) -> str:
        if step_of(ask).startswith("tasks_"):
            return '["Find the law."]'
        row = {"query": "who may end a lease", "positive": text, "hard_negative": "the lease stands"}
        changed = {"0": {"query": "The lease is void."}, "1": {"hard_negative": "The lease is VOID."}}
        return json.dumps({**row, **changed.get(ask.key.partition("/")[0], {})})

    settings = settings_of(tmp_path / "e5", recipe={"kind": "e5", "tasks": 1}, limit=3)
    assert run(settings, ScriptedWriter(say))["kept"] == 1
    reasons = ["the positive is the query", "the negative is the positive"]
    assert [reject["reason"] for reject in rejects_in(tmp_path / "e5")] == reasons
    recipe = {"kind": "reasonir", "parts": ["varied_length"], "words": [4, 4]}
    corpus = str(write_corpus(tmp_path, 2))
    record = run(settings_of(tmp_path / "long", corpus=corpus, recipe=recipe), ScriptedWriter(lambda _: text))
    assert record["rejects"] == [{"by": "writing", "reason": reasons[0], "count": 2}]


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


def test_a_row_in_other_words_counts_as_much_and_is_read_alike(tmp_path: Path) -> None:
    row = TrainingRow("q", "who made it?", (Passage("d", "T", "text"),), weight=3.0, query_form="thought_query")
    write_rows([row], tmp_path / "rows.jsonl")
    data = [{"path": str(tmp_path / "rows.jsonl")}]
    settings = settings_of(tmp_path / "run", recipe={"kind": "rewrites"}, data=data)
    run(settings, ScriptedWriter(lambda _: "whose work is it"))
    (made,) = load_rows([SourceSettings(path=str(SynthesisLayout(tmp_path / "run").rows))])
    assert (made.weight, made.query_form) == (3.0, "thought_query")
    assert run(settings, ScriptedWriter(str), resume=True)["kept"] == 1


def test_every_recipe_has_a_template_that_fits_it() -> None:
    values: dict[str, dict[str, Any]] = {
        "gecko": {"retriever": {"kind": "bm25", "index": "i"}},
        "rewrites": {"into": ["paraphrase", "decontextualise", "decompose"]},
        "qwen3": {"languages": ["Twi"]},
        "e5": {"languages": ["Twi"]},
    }
    for kind in RecipeSettings.KINDS:
        settings = RecipeSettings.of(kind=kind, **values.get(kind, {}))
        recipe = settings.open()
        template = load_template(settings.template_name, recipe.steps, {}, settings.OFFERED)
        assert template.about and template.steps.keys() >= recipe.steps.keys()
    assert set(RecipeSettings.KINDS) < set(templates())


def test_a_template_of_ones_own_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    steps = {"query": ("title?", "passage")}
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


@pytest.mark.parametrize(
    ("text", "choices", "message"),
    [
        ("Write a question.", {}, r"does not show \{passage\}"),
        ("About {Passage}: {passage}", {}, r"slot \{Passage\} that nothing fills.*did you mean 'passage'"),
        ("{passage}", {"lenght": ["a"]}, "draws 'lenght', and no step shows it"),
        ("{passage} {title}", {"title": ["a"]}, "draws 'title', which the recipe fills itself"),
    ],
)
def test_a_template_that_says_nothing_of_its_unit_is_refused(
    tmp_path: Path, text: str, choices: dict[str, list[str]], message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"steps": {"query": {"messages": [{"user": text}]}}}))
    with pytest.raises(ConfigError, match=message):
        load_template(str(path), {"query": ("title?", "passage")}, choices)


def test_a_template_needs_the_steps_of_its_settings_alone_and_is_read_before_the_writer_opens(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: {paraphrase: {messages: [{user: '{query}'}]}}\n")
    write_rows([TrainingRow("q", "who made it?", (Passage("d", "T", "text"),))], tmp_path / "rows.jsonl")
    values: dict[str, Any] = {"data": [{"path": str(tmp_path / "rows.jsonl")}]}
    recipe = {"kind": "rewrites", "template": str(path)}
    assert (
        run(settings_of(tmp_path / "a", recipe=recipe, **values), ScriptedWriter(lambda _: "whose is it"))["kept"] == 1
    )
    away = {"kind": "server", "base_url": "http://127.0.0.1:9/v1"}
    for more in (
        {"recipe": {**recipe, "into": ["decompose"]}},
        {"recipe": recipe, "filters": [{"kind": "answerable", "template": str(path)}]},
    ):
        settings = settings_of(tmp_path / "b", **values, **more, writer=away)
        with pytest.raises(ConfigError, match=r"has no step '(decompose|verdict)'"):
            run(settings, ScriptedWriter(str), overwrite=True)


def test_what_would_only_be_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each can be named once"):
        RecipeSettings.of(kind="rewrites", into=["paraphrase", "paraphrase"])
    corpus = str(write_corpus(tmp_path))
    cold = {"corpus": corpus, "sampling": {"temperature": 0}}
    settings = settings_of(tmp_path / "run", **cold, recipe={"kind": "queries", "per_passage": 3})
    with pytest.raises(ConfigError, match=r"at temperature 0 recipe\.per_passage writes the same row again"):
        run(settings, ScriptedWriter(str))
    writer = ScriptedWriter(lambda ask: "which ware" if ask.temperature else "")
    assert run(settings_of(tmp_path / "run", **cold), writer, overwrite=True)["kept"] == 12
    assert [ask.temperature for ask in writer.asked[:5]] == [0, 0, 0, 0, 1.0]


def test_every_draw_of_a_unit_is_a_draw_of_its_own(tmp_path: Path) -> None:
    """Language, length and personas of qwen3, or the words and the scene of reasonir, do not go together."""
    corpus = str(write_corpus(tmp_path, 400))
    reply = json.dumps({"persona": "p", "type": "t", "difficulty": "d", "instruction": "i", "query": "q"})
    recipe = {"kind": "qwen3", "languages": ["English", "German", "Dutch", "Twi"]}
    run(settings_of(tmp_path / "a", corpus=corpus, recipe=recipe, chunk=400), ScriptedWriter(lambda _: reply))
    pairs = {(row["made"]["language"], row["made"]["length"]) for row in rows_in(tmp_path / "a")}
    assert len(pairs) == 4 * 4
    reasonir = {"kind": "reasonir", "parts": ["varied_length"], "negatives": 0, "words": [1, 100]}
    settings = settings_of(tmp_path / "b", corpus=corpus, recipe=reasonir, chunk=400)
    run(settings, ScriptedWriter(lambda _: "word " * 100))
    made = [row["made"] for row in rows_in(tmp_path / "b")]
    for scene in {one["scene"] for one in made}:
        asked = [one["asked_words"] for one in made if one["scene"] == scene]
        assert 35 < sum(asked) / len(asked) < 65


def test_e5_draws_for_each_row(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        if step_of(ask).startswith("tasks_"):
            return json.dumps({"tasks": [f"Find {i}." for i in range(8)]})
        return json.dumps({"query": f"query {ask.key}", "positive": "good", "hard_negative": "bad"})

    recipe = {"kind": "e5", "tasks": 8, "languages": ["Dutch", "Twi"]}
    run(settings_of(tmp_path, recipe=recipe, limit=1), ScriptedWriter(say))
    made = [row["made"] for row in rows_in(tmp_path)]
    assert len({one["language"] for one in made}) == 2 and len({one["document_length"] for one in made}) > 1


@pytest.mark.parametrize("kind", ["queries", "reasonir"])
def test_a_text_that_is_cut_off_is_not_a_row(tmp_path: Path, kind: str) -> None:
    class Cut(ScriptedWriter):
        def write(self, asks: Any, on_reply: Any) -> None:
            for ask in asks:
                on_reply(ask, Reply("When did the town on the", "length"))

    record = run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), recipe={"kind": kind}), Cut(str))
    assert record["kept"] == 0 and {one["reason"] for one in record["rejects"]} == {"the reply was cut off"}


def test_json_that_is_whole_is_read_though_words_after_it_are_cut_off(tmp_path: Path) -> None:
    class Rambling(ScriptedWriter):
        def write(self, asks: Any, on_reply: Any) -> None:
            for ask in asks:
                row = {"persona": "p", "type": "t", "difficulty": "d", "instruction": "i", "query": f"q {ask.seed}"}
                on_reply(ask, Reply(json.dumps(row) + " And that is", "length"))

    corpus = str(write_corpus(tmp_path))
    assert run(settings_of(tmp_path / "run", corpus=corpus, recipe={"kind": "qwen3"}), Rambling(str))["kept"] == 12


def test_an_example_of_the_prompt_is_no_row(tmp_path: Path) -> None:
    replies = {"p0": "what makes the sound of a marimba louder", "p1": "What makes the town of Dunmore louder?"}
    writer = ScriptedWriter(lambda ask: replies.get(ask.key.split("/")[0], "Who made paper in Dunmore?"))
    run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path, 3))), writer)
    (reject,) = rejects_in(tmp_path / "run")
    assert (reject["by"], reject["reason"]) == ("writing", "an example of the prompt")
    assert reject["row"]["query"] == replies["p0"] and len(rows_in(tmp_path / "run")) == 2
    assert load_template("gecko", {}, {}).examples >= {"why does a kite stay up in the air"}
