"""``open`` shows a found document page by page; tools of one's own are checked before the first episode."""

import re

import pytest

from envs.config import EnvironmentSettings
from envs.protocols.base import open_protocol
from envs.tools import OpenDocument, make_tools, schemas, time_limits
from sleuth.errors import ConfigError, ToolError
from sleuth.types import Generation, Hit, Passage, Search, Turn

PARTS = [Passage(f"oslo#{n}", "Oslo", text) for n, text in enumerate(["one two three", "four five", "six"])]
LONG = [Passage("long", "Long", "a b c d e f g")]


class Shelf:
    def document(self, passage_id):
        return {"oslo#1": PARTS, "long": LONG}.get(passage_id, [])


def searched(*passages, query="q"):
    hits = tuple(Hit(passage, 1.0, rank) for rank, passage in enumerate(passages, start=1))
    return Turn(Generation((1,), (0.0,), "eos"), "", Search(query), hits)


TURNS = [searched(LONG[0], Passage("gone", "Gone", "x")), searched(PARTS[1])]


def opened(words=3, **arguments):
    return OpenDocument(Shelf(), words).call(arguments, TURNS)


def test_a_document_is_found_by_number_id_or_title():
    assert opened(document="1") == opened(document=1) == opened(document="[1]") == "Oslo (page 1 of 2)\none two three"
    assert opened(document="oslo#1") == opened(document=" oslo ") == opened(document="1")
    assert opened(document="LONG") == "Long (page 1 of 3)\na b c"
    with pytest.raises(ToolError, match="no passage found so far"):
        opened(document="2")  # the last results had one passage
    with pytest.raises(ToolError, match="cannot be opened"):
        opened(document="gone")


def test_pages_keep_passages_whole_where_they_fit_and_lose_nothing():
    assert [opened(document="oslo", page=page) for page in (1, 2)] == [
        "Oslo (page 1 of 2)\none two three",
        "Oslo (page 2 of 2)\nfour five\nsix",
    ]
    assert [opened(document="long", page=str(page)).split("\n")[1] for page in (1, 2, 3)] == ["a b c", "d e f", "g"]


@pytest.mark.parametrize("page", [0, 3, -1])
def test_a_page_that_is_not_there(page):
    with pytest.raises(ToolError, match="the document has 2 pages"):
        opened(document="oslo", page=page)


@pytest.mark.parametrize("arguments", [{}, {"document": ""}, {"document": True}, {"document": "oslo", "page": "two"}])
def test_arguments_that_say_nothing(arguments):
    with pytest.raises(ToolError, match=r"which document|whole number"):
        opened(**arguments)


SCHEMA = {"name": "lookup", "description": "d", "parameters": {"type": "object", "properties": {}}}


class Lookup:
    schema = SCHEMA

    def __init__(self, size=1):
        self.size = size

    def call(self, arguments, turns):
        return "x"


class Nameless(Lookup):
    schema = SCHEMA | {"name": "answer"}


class Namesake(Lookup):
    pass


class Mute:
    schema = SCHEMA


class Shaped(Lookup):
    """A tool whose schema has ``changes``."""

    def __init__(self, **changes):
        self.schema = SCHEMA | changes


class Faulty(Lookup):
    def __init__(self, size):
        raise ValueError(f"size {size}\nis too small")


class FaultyProtocol(Lookup):
    def __init__(self, schemas):
        del schemas


HERE = __name__


def test_tools_are_made_from_settings():
    lookup = {"kind": f"{HERE}:Lookup", "timeout_s": 2, "options": {"size": 3}}
    settings = EnvironmentSettings(tools=["search", {"kind": "open", "options": {"words": 5}}, lookup])
    assert [schema["name"] for schema in schemas(settings)] == ["search", "open", "lookup"]
    made = make_tools(settings, Shelf())
    assert list(made) == ["open", "lookup"] and made["lookup"].size == 3
    assert time_limits(settings, made) == {"open": 10.0, "lookup": 2.0}
    assert EnvironmentSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("tool", "fault"),
    [
        (f"{HERE}:Nameless", "cannot be called 'answer'"),
        (f"{HERE}:Mute", "has no method call"),
        ({"kind": f"{HERE}:Namesake", "options": {"depth": 1}}, "unexpected keyword argument 'depth'"),
        (f"{HERE}:Absent", "has no 'Absent'"),
        (f"{HERE}:Namesake", "two tools are called 'lookup'"),
        ({"kind": f"{HERE}:Faulty", "options": {"size": 1}}, "tool .*:Faulty: size 1$"),
        ({"kind": f"{HERE}:Shaped", "options": {"description": None}}, "has no description"),
        ({"kind": f"{HERE}:Shaped", "options": {"description": "the {question}"}}, "has {question} in its schema"),
        ({"kind": f"{HERE}:Shaped", "options": {"parameters": []}}, "has no schema"),
        ({"kind": f"{HERE}:Shaped", "options": {"parameters": {"properties": ["x"]}}}, "no mapping from names"),
        ({"kind": f"{HERE}:Shaped", "options": {"parameters": {"required": "x"}}}, "not among its properties"),
        ({"kind": f"{HERE}:Shaped", "options": {"parameters": {"required": ["x"]}}}, "not among its properties"),
        ({"kind": f"{HERE}:Shaped", "options": {"strict": {1}}}, "is not JSON"),
    ],
)
def test_an_unusable_tool_is_named(tool, fault):
    with pytest.raises(ConfigError) as raised:
        make_tools(EnvironmentSettings(tools=["search", tool, f"{HERE}:Lookup"]), None)
    assert re.search(fault, raised.value.message) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "fault"), [("FaultyProtocol", "has no 'stop_strings'"), ("Mute", "takes no arguments")]
)
def test_an_unusable_protocol_is_named(name, fault):
    with pytest.raises(ConfigError, match=f"protocol .*{name}.*{fault}"):
        open_protocol(EnvironmentSettings(protocol=f"{HERE}:{name}"))


@pytest.mark.parametrize(
    ("tools", "fault"),
    [
        ([], "must include search"),
        (["open"], "must include search"),
        (["search", "search"], "listed twice"),
        (["serch"], "did you mean 'search'"),
        (["search", {"kind": "open", "options": {"wrods": 1}}], "no option 'wrods'"),
        (["search", {"kind": "open", "options": {"words": 0}}], "above 0"),
        (["search", {"kind": "open", "options": {"words": True}}], "above 0"),
        (["search", {"kind": "open", "timeout_s": float("inf")}], "finite number"),
        (["search", {"kind": "open", "timeout_s": float("nan")}], "timeout_s"),
    ],
)
def test_lists_of_tools_that_make_no_sense(tools, fault):
    with pytest.raises(ValueError, match=fault):
        EnvironmentSettings(tools=tools)
    with pytest.raises(ValueError, match="did you mean 'hermes'"):
        EnvironmentSettings(protocol="hermse")
