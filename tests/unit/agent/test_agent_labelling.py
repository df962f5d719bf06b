"""Labels of what an agent's searches found, from outcomes alone, from golds, and at random."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.labelling.config import LabelSettings
from agent.labelling.searches import Group, asked_in, groups_of, hits_by_text, to_row
from sleuth.errors import ScoringError
from sleuth.types import Answer, Generation, Hit, Passage, Question, Search, Trajectory, Turn

FILM = Passage("film", "Gesu", "Gesu is a film of the director Nalo.")
OTHER = Passage("other", "Gesax", "Gesax is a film of the director Tiru.")
PERSON = Passage("person", "Nalo", "Nalo was born in Oslo.")
CITY = Passage("city", "Oslo", "A town by the sea.")
QUESTION = Question("q1", "Where was the director of Gesu born?", ("Oslo",), ("Gesu", "Nalo"), file="train.jsonl")
FIRST = ("Gesu", (FILM, OTHER))
SECOND = ("Nalo", (PERSON, CITY))


def rollout(*searches, answer="Oslo", question=QUESTION, stop="answer"):
    """A rollout that asks each (query, passages) in a turn of its own, and then answers."""
    said = Generation((1,), (0.0,), "stop")
    turns = [
        Turn(said, f"<think> I need {query}s </think> <search> {query} </search>", Search(query), hits_of(found))
        for query, found in searches
    ]
    return Trajectory(question, (), (*turns, Turn(said, "", Answer(answer))), stop)


def hits_of(passages):
    return tuple(Hit(passage, 1.0 / rank, rank) for rank, passage in enumerate(passages, start=1))


def right(trajectory):
    return trajectory.answer in trajectory.question.answers


def labels_of(*rollouts, form="query", **settings):
    (group,) = groups_of(rollouts, right)
    chosen = LabelSettings.of(**{"kind": "outcomes", **settings})
    return chosen.open()(group, asked_in(group, form))


def worths(labels):
    return {(label.text, label.positive.id): label.worth for label in labels}


def test_a_passage_with_the_answer_counts_and_what_led_there_shares_the_credit():
    labels = labels_of(rollout(FIRST, SECOND), rollout(FIRST, answer="Tiru"))
    # all rollouts found the film (worth 1/2), only the right one the person (worth 1)
    assert worths(labels) == {("Gesu", "film"): 0.25, ("Nalo", "person"): 1.0}
    assert worths(labels_of(rollout(FIRST, SECOND), shared_credit=0)) == {("Nalo", "person"): 0.5}


def test_what_right_rollouts_found_and_wrong_ones_missed_counts_more():
    missed = ("Nalo", (CITY, OTHER))
    alone = labels_of(rollout(SECOND), rollout(missed, answer="Rome"))
    alike = labels_of(rollout(SECOND), rollout(SECOND, answer="Rome"))
    half = labels_of(rollout(SECOND), rollout(SECOND, answer="Rome"), rollout(missed, answer="Rome"))
    assert [worths(some)["Nalo", "person"] for some in (alike, half, alone)] == [0.5, 0.75, 1.0]


def test_hits_that_did_not_help_are_negatives_and_those_that_mention_the_answer_are_neither():
    labels = labels_of(rollout(FIRST, SECOND))
    assert {label.text: [p.id for p in label.negatives] for label in labels} == {"Gesu": ["other"], "Nalo": []}
    assert CITY.title in QUESTION.answers  # its title alone has the answer


def test_a_passage_that_helped_elsewhere_in_the_group_is_no_negative():
    labels = labels_of(rollout(("Gesu", (FILM,)), SECOND), rollout(("film Gesu", (PERSON, FILM))))
    assert {(label.text, p.id) for label in labels for p in label.negatives} == set()


def test_a_hit_that_comes_with_being_right_is_no_negative_though_nothing_shows_that_it_helped():
    asked = ("Nalo", (PERSON, OTHER))
    labels = labels_of(rollout(asked), rollout(("Nalo", (FILM,)), answer="Rome"))
    assert [label.negatives for label in labels] == [(FILM,)]


def test_wrong_rollouts_and_unscored_ones_teach_nothing():
    assert labels_of(rollout(FIRST, SECOND, answer="Rome")) == []
    assert groups_of([rollout(SECOND, stop="retriever_failed")], right) == []


@pytest.mark.parametrize("answer", ["yes", "Gesu"])
def test_yes_and_what_the_question_names_are_no_evidence(answer):
    question = replace(QUESTION, text="Is Gesu older than Gesax?", answers=(answer,))
    said = ("Gesu", (Passage("x", "x", "yes, Gesu is old"), OTHER))
    assert labels_of(rollout(said, answer=answer, question=question)) == []


def test_words_that_every_hit_has_lead_nowhere():
    both = ("Gesu", (FILM, Passage("twin", "Gesu 2", "Another film of the director Nalo.")))
    assert ("Gesu", "film") not in worths(labels_of(rollout(both, SECOND)))


def test_rows_do_not_depend_on_gold_titles_or_ids():
    rollouts = [rollout(FIRST, SECOND), rollout(FIRST, answer="Tiru")]
    blank = replace(QUESTION, supporting_titles=(), gold_ids=(), kind="", alternatives=False)
    false = replace(QUESTION, supporting_titles=("Gesax",), gold_ids=("other",))
    rows = [
        [to_row(label, QUESTION, "query", str(i)) for i, label in enumerate(labels_of(*some))]
        for some in (
            rollouts,
            [replace(r, question=blank) for r in rollouts],
            [replace(r, question=false) for r in rollouts],
        )
    ]
    assert rows[0] and rows[0] == rows[1] == rows[2]


def test_labels_from_golds_do_depend_on_them():
    false = replace(QUESTION, supporting_titles=("Gesax",))
    assert set(worths(labels_of(rollout(FIRST, answer="no"), kind="golds"))) == {("Gesu", "film")}
    mistaken = rollout(FIRST, answer="no", question=false)
    assert set(worths(labels_of(mistaken, kind="golds"))) == {("Gesu", "other")}


def test_random_labels_are_as_many_for_the_same_queries_and_drawn_among_the_hits():
    wide = ("Nalo", (PERSON, *(Passage(f"p{i}", f"t{i}", "a text") for i in range(9))))
    rollouts = [rollout(wide, question=replace(QUESTION, id=f"q{i}")) for i in range(20)]
    drawn, meant = [], []
    for group in groups_of(rollouts, right):
        asked = asked_in(group, "query")
        meant += LabelSettings.of(kind="outcomes").open()(group, asked)
        drawn += LabelSettings.of(kind="random").open()(group, asked)
    assert [(a.text, a.worth) for a in drawn] == [(b.text, b.worth) for b in meant]
    assert {label.positive.id for label in drawn} <= {p.id for p in wide[1]}
    assert len({label.positive.id for label in drawn}) > 3
    assert all(label.positive not in label.negatives for label in drawn)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("query", "Nalo"),
        ("question_query", "Nalo | Where was the director of Gesu born?"),
        ("thought_query", "Nalo | I need Nalos"),
    ],
)
def test_rows_are_written_in_the_form_that_they_name(form, text):
    (label,) = labels_of(rollout(SECOND), form=form)
    row = to_row(label, QUESTION, form, "r1-0")
    assert (row["query"], row["query_form"], row["weight"]) == (text, form, 0.5)
    assert (row["question_file"], row["question_id"]) == ("train.jsonl", "q1")


def test_a_picture_that_leads_on_is_passed_over():
    scan = Passage("scan", "Nalo", " ")
    assert set(worths(labels_of(rollout(("Gesu", (scan, OTHER)), SECOND)))) == {("Nalo", "person")}


def test_a_language_model_is_asked_about_the_best_hits_and_other_replies_say_nothing(monkeypatch):
    asked = []

    def replies(self, prompts):
        asked.extend(prompts)
        return iter([True, False, None])

    monkeypatch.setattr("sleuth.judge.Judge.replies", replies)
    found = ("Nalo", (PERSON, OTHER, CITY, FILM))
    labels = labels_of(rollout(found), kind="judge", base_url="http://localhost", model="m", depth=3)
    assert [(label.positive, label.worth, label.negatives) for label in labels] == [(PERSON, 1.0, (OTHER,))]
    assert ['"passage": "Nalo was born' in text for text in asked] == [True, False, False]


def test_what_a_language_model_has_said_is_not_asked_for_again(monkeypatch, tmp_path):
    asked = []

    def replies(self, prompts):
        for text in prompts:
            if len(asked) == 2:
                asked.append(None)
                raise ScoringError("the server is gone")
            asked.append(text)
            yield '"passage": "Nalo was born' in text

    monkeypatch.setattr("sleuth.judge.Judge.replies", replies)
    settings = LabelSettings.of(kind="judge", base_url="http://localhost", model="m", depth=3)
    group = Group(QUESTION, [rollout(("Nalo", (PERSON, OTHER, CITY, FILM)))], [True])
    with pytest.raises(ScoringError):
        settings.open(tmp_path / "replies.jsonl")(group, asked_in(group, "query"))
    with (tmp_path / "replies.jsonl").open("a") as file:
        file.write('{"by": "m", "ask')  # killed while it wrote
    labels = settings.open(tmp_path / "replies.jsonl")(group, asked_in(group, "query"))
    assert [label.positive for label in labels] == [PERSON]
    assert len(asked) == 4 and len(set(asked)) == 4  # two, the failure, and the third alone


def test_the_hits_of_a_text_are_counted_over_rollouts_and_pictures_are_passed_over():
    picture = Passage("scan", "Scan", "  ")
    group = Group(QUESTION, [rollout(("Nalo", (PERSON, picture))), rollout(("Nalo", (PERSON,)))], [True, True])
    assert hits_by_text(asked_in(group, "query")) == {"Nalo": {"person": (PERSON, 2)}}
