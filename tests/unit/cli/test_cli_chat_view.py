"""What reaches the terminal: text in its place, and nothing that steers the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tiny_tokenizers import byte_level

from agent.codec import HFCodec
from agent.events import PassagesGiven, ThoughtOpen, TokenSampled, TurnTaken
from agent.policies.scripted import ScriptedPolicy
from agent.session import Exchange, Knobs, Session, Tools
from cli.chat.flow import GUTTER, Flow
from cli.chat.view import View, as_json, costs, describe, folded
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.types import (
    Action,
    Answer,
    Call,
    Generation,
    Hit,
    Invalid,
    Passage,
    Question,
    Search,
    Segment,
    Trajectory,
    Turn,
)

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\b\u202e[bold]x[/bold] :smile: \ud800"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def console(width: int = 60, colour: bool = False) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        highlight=False,
        color_system="truecolor" if colour else None,
    )


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def decode(ids):
    return "".join(chr(i) for i in ids)


def play(view: View, *turns: Turn) -> None:
    with view.playing():
        for turn in turns:
            for token in turn.generation.token_ids:
                view.on_event(TokenSampled("e", token, 0.0))
            view.on_event(TurnTaken("e", turn))


def turn(text: str, action: Action, hits: tuple[Hit, ...] = (), observation: str = "", streamed: bool = True) -> Turn:
    ids = tuple(map(ord, text)) if streamed else ()
    return Turn(Generation(ids, (), "stop"), text, action, hits, observation)


def exchange(*turns: Turn, stop="answer", answers=(), failure="", grades=None) -> Exchange:
    segments = (Segment("prompt", (72, 105)), *(Segment("policy", t.generation.token_ids) for t in turns))
    trajectory = Trajectory(Question("q", "who?", answers), segments, turns, stop, {"generate": 1.0})
    return Exchange(trajectory, Knobs(), "idx", failure, grades or {})


LONG = "Oslo is\nthe capital. " * 9
HITS = (Hit(Passage("p1", "Oslo", LONG), 12.5, 1), Hit(Passage("p2", HOSTILE, HOSTILE), 3.25, 2))
SEARCHED = turn("<think>Need it.</think>\n<search> capital </search>\n", Search("capital"), HITS, "<information>")
ANSWERED = turn("<think>Found.</think> <answer>Oslo</answer>", Answer("Oslo"))


@pytest.mark.parametrize("streamed", [True, False])
def test_a_turn_that_begins_inside_a_thought_is_shown_as_one(streamed) -> None:
    target = console(70)
    view = View(target, decode)
    text = "I could <search> x </search> but no.</think><answer>Oslo</answer>"
    taken = turn(text, Answer("Oslo"), streamed=streamed)
    with view.playing():
        view.on_event(ThoughtOpen("e"))
        for token in taken.generation.token_ids:
            view.on_event(TokenSampled("e", token, 0.0))
        view.on_event(TurnTaken("e", taken))
        view.on_event(TurnTaken("e", ANSWERED))
    assert written(target).splitlines() == [
        "   think  I could <search> x </search> but no.",
        "  answer  Oslo",
        "   think  Found.",
        "  answer  Oslo",
    ]


def test_a_session_with_a_thinking_model() -> None:
    """Through the driver: the template opens the thought, and what the thought mentions is not shown as a search."""
    codec = HFCodec(byte_level("deepseek", "deepseek_r1_distill"))
    said = ["I could <search> but know.</think> Oslo.", "So.</think><answer>Oslo</answer>"]
    policy = ScriptedPolicy(codec, lambda _, turn: said[turn])
    settings = EnvironmentSettings(kind="direct")
    tools = Tools(lambda _: make_environment(settings, codec), lambda _: None, lambda _: [], {})
    target = console(70)
    view = View(target, codec.decode)
    session = Session(policy, codec, tools, Knobs(mode="direct"))
    with view.playing():
        exchange = session.ask("What is the capital of Norway?", view.on_event)
    assert written(target).splitlines() == [
        "   think  I could <search> but know.",
        "          Oslo.",
        " invalid  the turn neither searched nor answered",
        "   think  So.",
        "  answer  Oslo",
    ]
    assert exchange.trajectory.turns[0].observation.endswith("<｜Assistant｜><think>\n")


def test_every_part_of_a_turn_has_its_label() -> None:
    target = console(70)
    play(View(target, decode), SEARCHED, ANSWERED)
    lines = written(target).splitlines()
    assert lines[:3] == ["   think  Need it.", "  search  capital", "          [1] #1   12.500  Oslo  " + lines[2][33:]]
    assert "Oslo is the capital." in lines[2]
    assert len(lines[2]) <= 160
    assert lines[3].startswith("          [2] #2    3.250  \\x1b[31mred")
    assert lines[4:] == ["   think  Found.", "  answer  Oslo"]


def test_nothing_steers_the_terminal() -> None:
    target = console(80, colour=True)
    view = View(target, decode)
    said = turn(f"<think>{HOSTILE}</think><search>{HOSTILE}</search>{HOSTILE}", Search(HOSTILE), HITS, "x")
    play(view, said, turn(HOSTILE, Invalid(HOSTILE)))
    result = exchange(said, stop="retriever_failed", failure=HOSTILE, answers=(HOSTILE,), grades={"em": 0.0})
    view.ended(result)
    view.question(HOSTILE)
    view.passage(1, HITS[1])
    view.mask(result.trajectory, lambda ids: HOSTILE)
    view.tokens_of(result.trajectory, {72: HOSTILE, 105: HOSTILE})
    view.beside(result, result)
    view.knobs(Knobs(), HOSTILE)
    text = written(target)
    assert "[bold]x[/bold] :smile:" in text
    assert "\\x1b[31mred" in text
    rest = ANSI.sub("", text)
    assert [char for char in rest if not char.isprintable() and char != "\n"] == []
    assert "\x1b[31mred" not in text


def test_a_policy_that_streams_nothing_is_shown_turn_by_turn() -> None:
    target = console()
    play(View(target, decode), turn("<answer>Oslo</answer>", Answer("Oslo"), streamed=False))
    assert written(target) == "  answer  Oslo\n"


def test_what_the_policy_makes_up_is_said_so() -> None:
    target = console()
    text = "<information>Oslo is big</information> and <answer>Oslo"
    play(View(target, decode), turn(text, Invalid("only results")))
    assert written(target).splitlines() == [
        " made up  Oslo is big",
        "          and",
        "  answer  Oslo",
        " invalid  only results",
    ]


def test_a_search_that_finds_nothing_and_one_that_fails() -> None:
    target = console()
    view = View(target, decode)
    play(view, turn("<search>a</search>", Search("a"), (), "nothing found"))
    assert written(target).splitlines()[-1].strip() == "nothing found"
    play(view, turn("<search>b</search>", Search("b")))
    assert written(target).splitlines()[-1] == "  search  b"
    view.ended(exchange(turn("<search>b</search>", Search("b")), stop="retriever_failed", failure="it is down"))
    assert "the retriever failed: it is down" in written(target)


def test_passages_given_with_the_question_come_first() -> None:
    target = console()
    view = View(target, decode)
    with view.playing():
        view.on_event(PassagesGiven("e", HITS[:1]))
        view.on_event(TurnTaken("e", turn("<search>a</search>", Search("a"), HITS[:1], "x", streamed=False)))
    assert [line.split()[0] for line in written(target).splitlines()] == ["[1]", "search", "[2]"]


def test_an_interrupted_answer_ends_its_line_and_the_next_one_begins_anew() -> None:
    target = console()
    view = View(target, decode)
    with pytest.raises(KeyboardInterrupt), view.playing():
        for char in "<think>so <sea":
            view.on_event(TokenSampled("e", ord(char), 0.0))
        raise KeyboardInterrupt
    view.stopped()
    assert written(target).splitlines() == [
        "   think  so",
        "          stopped after 0 turns and 14 tokens; this answer is not kept. /again asks again",
    ]
    play(view, ANSWERED)
    assert written(target).splitlines()[2:] == ["   think  Found.", "  answer  Oslo"]
    view.stopped()
    assert written(target).splitlines()[-1].strip() == "stopped"


def test_turns_stand_side_by_side() -> None:
    target = console(100)
    left = exchange(SEARCHED, ANSWERED, answers=("Oslo",), grades={"em": 1.0, "f1": 1.0})
    right = exchange(turn("<answer>Rome</answer>", Answer("Rome")), turn("x", Invalid("why")), stop="turn_budget")
    View(target, decode).beside(left, right)
    lines = written(target).splitlines()
    assert lines[0].split() == ["idx", "idx"]
    assert lines[1].startswith("search  capital")
    assert "EM 1  F1 1" in written(target)
    assert "all turns are used" in " ".join(written(target).split())


def test_json_says_all_that_was_found() -> None:
    values = as_json(exchange(SEARCHED, ANSWERED, answers=("Oslo",), grades={"em": 1.0, "f1": 1.0}))
    assert (values["answer"], values["em"], values["turns"], values["retriever"]) == ("Oslo", 1.0, 2, "idx")
    (search,) = values["searches"]
    assert search["query"] == "capital"
    assert search["hits"][0] == {
        "id": "p1", "title": "Oslo", "text": HITS[0].passage.text, "score": 12.5, "rank": 1,
    }  # fmt: skip


def test_knobs_are_said_on_one_line() -> None:
    assert describe(Knobs(), "idx") == (
        "mode search · retriever idx · top-k 3 · turns 6 with 4 searches · greedy · next seed 0"
    )
    assert describe(Knobs(mode="cot", temperature=0.5), "idx") == "mode cot · turns 6 · temperature 0.5 · next seed 0"


@given(st.text(), st.text(), st.integers(40, 200))
@settings(deadline=None)
def test_a_folded_passage_is_one_line_that_fits(title: str, text: str, width: int) -> None:
    line = folded(3, Hit(Passage("p", title, text), 1.5, 2), width).plain
    assert "\n" not in line
    assert line.isprintable()
    assert cell_len(line) <= max(width, 72)


@given(st.lists(st.text(st.one_of(st.sampled_from("ab \n\t漢e\u0301"), st.characters()), max_size=12)))
@settings(max_examples=200, deadline=None)
def test_wrapping_keeps_every_word_within_the_margin_and_does_not_depend_on_the_chunks(chunks: list[str]) -> None:
    def flow(parts: list[str], width: int) -> str:
        target = console(width)
        one = Flow(target)
        one.begin("x", "")
        for part in parts:
            one.write(part)
        one.end()
        return written(target)

    text = flow(chunks, 40)
    assert text == flow(["".join(chunks)], 40)
    assert all(cell_len(line) <= 40 for line in text.splitlines())
    assert all(line.startswith(" " * GUTTER) for line in text.splitlines()[1:] if line)
    wide = flow(chunks, 100_000)
    assert "".join(text[GUTTER:].split()) == "".join(wide[GUTTER:].split())
    words = "".join("".join(chunks).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    assert "".join(wide[GUTTER:].split()) == shown


def test_calls_of_tools_and_several_queries_are_shown() -> None:
    target = console(70)
    view = View(target, decode)
    call = '<tool_call>{"name": "search"}</tool_call>'
    searched = replace(
        turn(f"<think>Both.</think>{call}{call}", Search("a", "b"), HITS[:1], "x"), hits_per_query=(0, 1)
    )
    opened = turn("<tool_call>{}</tool_call>", Call("open", {"document": "1"}), (), "Oslo (page 1 of 2)")
    failed = replace(turn("<open>9</open>", Call("open", {"document": "9"}), (), "x"), failure="open failed: no")
    play(view, searched, opened, failed, turn("<tool_response>Oslo</tool_response>", Invalid("made up")))
    lines = written(target).splitlines()
    assert lines[0] == "   think  Both." and [line for line in lines if line.startswith("    call  {")] != []
    assert '  called  open {"document": "1"}' in lines and "returned  Oslo (page 1 of 2)" in lines
    assert "  failed  open failed: no" in lines and " made up  Oslo" in lines
    result = exchange(searched, opened, failed, ANSWERED)
    assert costs(result)[:3] == ["2 searches", "2 calls of tools", "4 turns"]
    shown = as_json(result)
    assert [(one["query"], len(one["hits"])) for one in shown["searches"]] == [("a", 0), ("b", 1)]
    assert shown["calls"][1] == {
        "tool": "open",
        "arguments": {"document": "9"},
        "answer": "x",
        "failure": "open failed: no",
    }
    target = console(100)
    View(target, decode).beside(result, result)
    assert written(target).count('call  open {"document": "1"}') == 2
