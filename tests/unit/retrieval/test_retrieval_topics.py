"""TREC topics in the layouts of its tracks."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation.topics import read_topics
from sleuth.errors import ConfigError, DataError

CLASSIC = """
<top>
<head> Tipster Topic Description
<num> Number:  051
<title> Topic:  Airbus &amp; subsidies

<desc> Description:
Will the AT&T board
discuss it?

<narr> Narrative: A relevant document says <so>.
</top>

<top>
<num> Number: 301 </num>
<title>organized crime</title>
<desc>Crime.</desc>
</top>
"""
WEB = """<?xml version="1.0" encoding="UTF-8"?>
<webtrack2012>
  <topic number="151" type="ambiguous">
    <query>403b</query>
    <description>
      What is a 403b plan?
    </description>
    <subtopic number="1" type="inf">First.</subtopic>
    <subtopic number="2" type="nav">Second.</subtopic>
  </topic>
  <topic number="152" type="faceted"><query>angular cheilitis</query><description>Causes?</description></topic>
</webtrack2012>
"""
COVID = """<topics task="COVID-19"><topic number="1"><query>origin</query><question>where from</question>
<narrative>Any.</narrative></topic></topics>"""


def put(tmp_path: Path, text: str, name: str = "topics.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["topics.txt", "topics.51-100.gz"])
def test_the_sgml_of_ad_hoc_tracks(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, CLASSIC, name)
    assert [(q.id, q.text) for q in read_topics(path)] == [("51", "Airbus & subsidies"), ("301", "organized crime")]
    first = read_topics(path, "description")[0]
    assert first.text == "Will the AT&T board discuss it?"
    assert read_topics(path, "title+description")[1].text == "organized crime Crime."
    with pytest.raises(DataError, match=r"topic 301 has no narrative .it has title, desc"):
        read_topics(path, "narrative")


@pytest.mark.parametrize("name", ["topics.xml", "topics.xml.gz"])
def test_the_xml_of_web_tracks(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, WEB, name)
    assert [(q.id, q.text) for q in read_topics(path)] == [("151", "403b"), ("152", "angular cheilitis")]
    assert read_topics(path, "description")[0].text == "What is a 403b plan?"
    covid = put(tmp_path, COVID, "covid.xml")
    assert [read_topics(covid, name)[0].text for name in ("title", "description", "narrative")] == [
        "origin",
        "where from",
        "Any.",
    ]


@pytest.mark.parametrize(
    ("text", "field", "error", "message"),
    [
        ("", "title", DataError, "has no topics"),
        ("1\tquery\n", "title", DataError, "other queries: --queries FILE"),
        ("<top><title>a</top>", "title", DataError, "topic 1 has no number"),
        ("<top><num>1<title>a</top><top><num>1<title>b</top>", "title", DataError, "duplicate topic 1"),
        (CLASSIC, "titel", ConfigError, "did you mean 'title'"),
        (CLASSIC, "title+", ConfigError, "topics have no field ''"),
    ],
)
def test_broken_topics_are_one_clear_line(
    tmp_path: Path, text: str, field: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        read_topics(put(tmp_path, text), field)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(st.dictionaries(st.integers(1, 999), st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_topics_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, written: dict[int, tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("topics")
    sgml = "".join(
        f"<top>\n<num> Number: {n}\n<title> {t}\n\n<desc> Description:\n{d}\n</top>\n" for n, (t, d) in written.items()
    )
    xml = "".join(f'<topic number="{n}"><query>{t}</query><desc>{d}</desc></topic>' for n, (t, d) in written.items())
    for text in (sgml, f"<topics>{xml}</topics>"):
        path = put(folder, text)
        assert {q.id: q.text for q in read_topics(path)} == {str(n): t for n, (t, _) in written.items()}
        assert {q.id: q.text for q in read_topics(path, "description")} == {str(n): d for n, (_, d) in written.items()}
