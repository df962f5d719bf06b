"""A call of a tool ends in an answer for the policy, whatever the tool does."""

import logging
import threading
import time

from agent.tools import ToolBox
from sleuth.errors import ToolError
from sleuth.types import Call


class Tool:
    def __init__(self, work):
        self.schema = {}
        self.work = work

    def call(self, arguments, turns):
        return self.work(arguments)


def box(**work):
    return ToolBox({name: Tool(one) for name, one in work.items()}, dict.fromkeys(work, 0.2))


def calls(*names):
    return [(Call(name, {"x": name}), []) for name in names]


def refuse(arguments):
    raise ToolError("x must be\n a number", "never shown")


def test_answers_come_in_order_and_calls_run_side_by_side():
    meeting = threading.Barrier(2, timeout=5)

    def meet(arguments):
        meeting.wait()
        return arguments["x"]

    answers = box(a=meet, b=meet).call(calls("a", "b"))
    assert [(answer.text, answer.failed) for answer in answers] == [("a", False), ("b", False)]


def test_a_failure_is_one_line_to_the_policy_and_unexpected_ones_are_logged_once(caplog):
    tools = box(divide=lambda arguments: str(1 / 0), refuse=refuse, wrong=lambda arguments: 7)
    with caplog.at_level(logging.WARNING, "sleuth"):
        answers = tools.call(calls("divide", "divide", "refuse", "wrong"))
    assert all(answer.failed for answer in answers)
    assert [answer.text for answer in answers] == [
        "divide failed: ZeroDivisionError: division by zero",
        "divide failed: ZeroDivisionError: division by zero",
        "refuse failed: x must be a number",
        "wrong failed: TypeError: it returned int, not str",
    ]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "the tool divide raised ZeroDivisionError: division by zero",
        "the tool wrong raised TypeError: it returned int, not str",
    ]


def test_a_tool_that_hangs_holds_nothing_up(caplog):
    release = threading.Event()
    tools = box(hang=lambda arguments: str(release.wait(30)), quick=lambda arguments: "here")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "sleuth"):
        hung, quick = tools.call(calls("hang", "quick"))
    assert time.monotonic() - started < 2
    release.set()
    assert (hung.text, hung.failed) == ("hang failed: it took longer than 0.2 s", True)
    assert (quick.text, quick.failed) == ("here", False)
    assert "the tool hang took longer than 0.2 s (its timeout_s)" in caplog.text
