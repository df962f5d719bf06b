"""A training question about what is measured with is found out by its gold passages, and by their titles."""

from __future__ import annotations

from sleuth.leaks import HeldOut, Leaks, without_leaks
from sleuth.types import Question


def asked(name: str, titles: tuple[str, ...] = (), ids: tuple[str, ...] = ()) -> Question:
    return Question(name, f"{name}?", ("a",), titles, gold_ids=ids)


def kept(held: HeldOut, *questions: Question) -> tuple[list[str], Leaks]:
    rows, leaks = without_leaks(questions, held, lambda question: question)
    return [question.id for question in rows], leaks


def test_a_shared_passage_or_title_leaks() -> None:
    held = HeldOut.of([asked("d1", ("Oslo",), ("p1", "p2::w0")), asked("d2", ("Peer_Gynt",)), asked("d3")])
    assert held and held.questions == 3
    found = kept(
        held,
        asked("other", ("Bergen",), ("p9",)),
        asked("passage", ("Bergen",), ("p9", "p1")),
        asked("window of the same passage", ("Bergen",), ("p2::w7",)),
        asked("title", ("Bergen", "peer  gynt"), ("p9",)),
        asked("both", ("OSLO",), ("p1",)),
        asked("title alone", ("Oslo",)),
        asked("nothing known"),
    )
    assert found == (["other", "nothing known"], Leaks(of=7, by_passage=3, by_title=2))
    assert found[1].count == 5
    assert found[1] + Leaks(3, 1, 0) == Leaks(10, 4, 2)


def test_what_is_asked_with_may_be_held_out_by_id_and_by_text() -> None:
    dev = [asked("d1", ("Oslo",)), Question("d2", "Who wrote  HAMLET", ("a",))]
    held = HeldOut.of(dev, golds=False, asked=True)
    rows = [asked("d1"), Question("t", "who wrote Hamlet?", ("a",)), asked("other", ("Oslo",))]
    assert held and kept(held, *rows) == (["other"], Leaks(of=3, asked=2))
    assert kept(HeldOut.of(dev), *rows) == (["d1", "t"], Leaks(of=3, by_title=1))


def test_nothing_leaks_where_nothing_is_held_out() -> None:
    held = HeldOut.of([asked("d")])
    assert not held and not HeldOut()
    assert kept(held, asked("a", ("Oslo",), ("p",))) == (["a"], Leaks(of=1))
