"""The questions, and how a demonstrator who knows the world would search for the answers.

A question is drawn as a ``Case`` (entities and relations); its words are chosen afterwards, so that the
``paraphrase`` setting changes the wording of a world and nothing else.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from envs.toy_world.config import Split, WorldSettings
from envs.toy_world.facts import RELATIONS, YEAR, Entity
from envs.toy_world.lexicon import Lexicon
from envs.toy_world.wordings import ASK, COMPARED, FOUND, NEED, SAME, VERDICTS
from sleuth.errors import ConfigError
from sleuth.types import Plan, PlanStep, Question

CHAINS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "one_hop": [(relation,) for relations in RELATIONS.values() for relation in relations],
    "two_hop": [
        ("director", "birthplace"),
        ("director", "birth year"),
        ("studio", "founder"),
        ("studio", "headquarters"),
        ("founder", "birthplace"),
        ("birthplace", "country"),
        ("headquarters", "country"),
    ],
    "three_hop": [
        ("director", "birthplace", "country"),
        ("studio", "headquarters", "country"),
        ("studio", "founder", "birthplace"),
        ("founder", "birthplace", "country"),
    ],
}
CHAIN_KINDS = frozenset({"two_hop", "three_hop"})
"""Questions of which only the start is named: each search needs what the one before has found."""
COMPARED_RELATIONS = [relation for facts in RELATIONS.values() for relation, target in facts.items() if target == YEAR]
SHARED_RELATIONS = ["director", "studio", "birthplace", "headquarters", "country"]
DIRECTIONS = ("earlier", "later")
_TRIES = 40


@dataclass(frozen=True, slots=True)
class Case:
    """A question before wording: the entities asked about and the relations to follow from them.

    A chain has one start and one relation per hop; comparison and yes/no have two starts and one relation.
    """

    kind: str
    starts: tuple[str, ...]
    relations: tuple[str, ...]
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """Entities of one split: ``having`` by relation, ``sharing`` by relation and value."""

    having: Mapping[str, Sequence[Entity]]
    sharing: Mapping[tuple[str, str], Sequence[Entity]]

    @classmethod
    def of(cls, entities: Iterable[Entity]) -> Pool:
        having: dict[str, list[Entity]] = defaultdict(list)
        sharing: dict[tuple[str, str], list[Entity]] = defaultdict(list)
        for entity in entities:
            for relation, value in entity.facts.items():
                having[relation].append(entity)
                sharing[relation, value].append(entity)
        return cls(having, sharing)


def draw_cases(settings: WorldSettings, entities: Mapping[str, Entity], split: Split, count: int) -> list[Case]:
    """``count`` different cases of one split in a seeded order, with kinds in proportion to their weights.

    Raises ConfigError if the split is too small for that many.
    """
    pool = Pool.of(entity for entity in entities.values() if entity.split == split)
    rng = random.Random(f"{settings.seed}/questions/{split}")
    cases: dict[Case, None] = {}
    for kind, quota in _quotas(settings, count).items():
        draw = _DRAWERS.get(kind, _draw_chain)
        wanted, tries = len(cases) + quota, 0
        while len(cases) < wanted:
            case = draw(kind, pool, rng)
            tries = 0 if case and case not in cases else tries + 1
            if case:
                cases[case] = None
            if tries > _TRIES * max(quota, 10):
                raise ConfigError(
                    f"the {split} split is too small for {quota} different questions of kind {kind}",
                    "ask for fewer questions, or make the world larger",
                )
    drawn = list(cases)
    rng.shuffle(drawn)
    return drawn


def put(case: Case, entities: Mapping[str, Entity], lexicon: Lexicon | None, wording: int, question_id: str) -> Plan:
    """Word the case, with its demonstration; ``lexicon`` is given for a paraphrase.

    Searches for entities named in the question use the question's words, later ones the passages' words.
    ``supporting_titles`` are in the order of the searches.
    """
    tell = lexicon.alias if lexicon else str
    reword = lexicon.reword if lexicon else str
    plan = _plan_chain if len(case.starts) == 1 else _plan_pair
    return plan(case, entities, (tell, reword), wording, question_id)


def _quotas(settings: WorldSettings, count: int) -> dict[str, int]:
    """``count`` divided by weight; the remainder goes to the first kinds."""
    weights: dict[str, float] = {kind: weight for kind, weight in settings.kinds.model_dump().items() if weight}
    total = sum(weights.values())
    quotas = {kind: int(count * weight / total) for kind, weight in weights.items()}
    for kind in list(quotas)[: count - sum(quotas.values())]:
        quotas[kind] += 1
    return quotas


def _draw_chain(kind: str, pool: Pool, rng: random.Random) -> Case | None:
    relations = rng.choice(CHAINS[kind])
    return Case(kind, (rng.choice(pool.having[relations[0]]).name,), relations)


def _draw_comparison(kind: str, pool: Pool, rng: random.Random) -> Case | None:
    relation = rng.choice(COMPARED_RELATIONS)
    a, b = rng.choice(pool.having[relation]), rng.choice(pool.having[relation])
    if a.facts[relation] == b.facts[relation]:
        return None
    return Case(kind, (a.name, b.name), (relation,), rng.choice(DIRECTIONS))


def _draw_yes_no(kind: str, pool: Pool, rng: random.Random) -> Case | None:
    """For half of them the answer is yes, so that guessing without a search does not pay off."""
    relation, same = rng.choice(SHARED_RELATIONS), rng.random() < 0.5
    for _ in range(_TRIES):
        a = rng.choice(pool.having[relation])
        b = rng.choice(pool.sharing[relation, a.facts[relation]] if same else pool.having[relation])
        if a.name != b.name and (a.facts[relation] == b.facts[relation]) == same:
            return Case(kind, (a.name, b.name), (relation,))
    return None


_Drawer = Callable[[str, Pool, random.Random], Case | None]
_DRAWERS: Mapping[str, _Drawer] = {"comparison": _draw_comparison, "yes_no": _draw_yes_no}
_Voice = tuple[Callable[[str], str], Callable[[str], str]]


def _plan_chain(case: Case, entities: Mapping[str, Entity], voice: _Voice, wording: int, question_id: str) -> Plan:
    tell, reword = voice
    phrase = " of the ".join(reversed([reword(relation) for relation in case.relations]))
    texts = ASK["chain"]
    text = texts[wording % len(texts)].format(phrase=f"{phrase} of {tell(case.starts[0])}")
    titles, steps, think = [], [], ""
    name, query = case.starts[0], tell(case.starts[0])
    for relation in case.relations:
        value = entities[name].facts[relation]
        steps.append(PlanStep(f"{think} {NEED.format(relation=relation)}".strip(), query, value))
        titles.append(name)
        think = FOUND.format(relation=relation, value=value)
        name = query = value
    question = Question(question_id, text, (value,), tuple(titles), case.kind)
    return Plan(question, tuple(steps), think, value)


def _plan_pair(case: Case, entities: Mapping[str, Entity], voice: _Voice, wording: int, question_id: str) -> Plan:
    tell, reword = voice
    (relation,) = case.relations
    a, b = (tell(name) for name in case.starts)
    first, second = (entities[name].facts[relation] for name in case.starts)
    need = NEED.format(relation=relation)
    found = [FOUND.format(relation=relation, value=value) for value in (first, second)]
    steps = (PlanStep(need, a, first), PlanStep(f"{found[0]} {need}", b, second))
    if case.kind == "comparison":
        order = ((a, case.starts[0]), (b, case.starts[1]))
        ordered = order if first < second else order[::-1]
        answer, name = ordered[DIRECTIONS.index(case.direction)]
        think = COMPARED.format(earlier=ordered[0][0], later=ordered[1][0])
        answers = tuple(dict.fromkeys((answer, name)))
    else:
        answer = "yes" if first == second else "no"
        think = SAME.format(verdict=VERDICTS[answer])
        answers = (answer,)
    texts = ASK[case.kind]
    words = {"relation": reword(relation), "direction": reword(case.direction), "same": reword("same")}
    text = texts[wording % len(texts)].format(a=a, b=b, **words)
    return Plan(Question(question_id, text, answers, case.starts, case.kind), steps, f"{found[1]} {think}", answer)
