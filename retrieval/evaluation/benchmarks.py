"""BEIR and BRIGHT by name or folder.

A name is loaded from the hub into the user's cache. A folder is BEIR's own layout (``corpus.jsonl``, ``queries.jsonl``,
``qrels/test.tsv``) or a copy of the hub's: files or Parquet shards in ``corpus/`` and ``queries/``, judgements in
``qrels/`` or in the folder beside it that is called ``NAME-qrels``; for BRIGHT, ``examples/DOMAIN*`` and
``documents/DOMAIN*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.corpus import corpus_files
from retrieval.evaluation.judgements import Qrels, level_of, read_qrels, read_queries
from retrieval.evaluation.sets import RetrievalSet
from sleuth.errors import DataError, did_you_mean
from sleuth.files import DELIMITERS, HUB, PARQUET, stem_of, suffix_of
from sleuth.rows import RawRow, read_rows
from sleuth.types import Question

BEIR_OWNER = "BeIR"
BEIR = (
    *("msmarco", "trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020", "quora"),
    *("dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact"),
)
"""The sets that BEIR publishes; a forum of CQADupStack is ``mteb/cqadupstack-android`` and so on."""

BRIGHT = "xlangai/BRIGHT"
DOMAINS = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living"),
    *("leetcode", "pony", "aops", "theoremqa_questions", "theoremqa_theorems"),
)
LONG_DOMAINS = (*DOMAINS[:7], "pony")
"""Domains that also come with whole documents."""

_NO_ID = "N/A"
_BESIDE = "-qrels"
"""Ends the name of the folder of judgements beside that of a set."""
_SUFFIXES = (".jsonl", PARQUET, *DELIMITERS, ".json")
_OF_THE_HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_DEV_ON_THE_HUB = "validation"
"""What the hub calls the split that BEIR's archives call dev."""


def beir_set(given: str, split: str | None = None) -> RetrievalSet:
    """The set ``given``: a folder, one of `BEIR`, or ``owner/name`` on the hub in the layout of BEIR's or mteb's.

    ``split`` None: test, or dev for MS MARCO, whose test answers are not public. Raises DataError.
    """
    folder = Path(given)
    if not folder.name.strip("."):  # "." and ".." name no set
        folder = folder.resolve()
    name = folder.name if folder.is_dir() else given.rpartition("/")[2]
    chosen = split or ("dev" if name == "msmarco" else "test")
    if folder.is_dir():
        corpus, queries = _corpus_of(folder), read_queries(*_parts(folder, "queries"))
        qrels = read_qrels(*_judgements(folder, chosen))
    else:
        owner = _owner(given)
        source = f"{HUB}{owner}/{name}"
        corpus, queries = f"{source}/corpus/corpus", read_queries(f"{source}/queries/queries")
        hub_split = _DEV_ON_THE_HUB if (owner, chosen) == (BEIR_OWNER, "dev") else chosen
        qrels = read_qrels(f"{source}-qrels/{hub_split}" if owner == BEIR_OWNER else f"{source}/default/{hub_split}")
    return RetrievalSet(name, {query.id: query for query in queries}, qrels, corpus, not_itself=True, split=chosen)


def bright_sets(given: str, long: bool = False) -> list[RetrievalSet]:
    """The sets ``given``: a domain, ``all`` of them, or a folder with all, or the domain ``FOLDER/biology``.

    ``long``: whole documents are searched instead of their passages. Raises DataError.
    """
    folder, domain = Path(given), None
    if not folder.is_dir() and (folder.parent / "examples").is_dir():
        folder, domain = folder.parent, folder.name
    if folder.is_dir():
        there = sorted({_base(path) for path in _files(folder / "examples")})
        if domain and domain not in there:
            raise DataError(f"{folder} has no domain '{domain}'", did_you_mean(domain, there))
        domains = (
            [domain] if domain else [name for name in there if not long or _matching(_documents(folder, long), name)]
        )
        if not domains:
            raise DataError(f"{folder} has no {'long documents' if long else 'examples'}", "is it a copy of BRIGHT?")
        return [_bright_of_folder(folder, name, long) for name in domains]
    if given in ("all", BRIGHT):
        domains = list(LONG_DOMAINS if long else DOMAINS)
    elif given in DOMAINS:
        domains = [given]
    else:
        raise DataError(f"BRIGHT has no domain '{given}', and there is no such folder", did_you_mean(given, DOMAINS))
    kind = "long_documents" if long else "documents"
    return [_bright(name, [f"{HUB}{BRIGHT}/examples/{name}"], f"{HUB}{BRIGHT}/{kind}/{name}", long) for name in domains]


def set_of(judgements: Path) -> Path | None:
    """The folder of the set that a file of judgements is of, by where it lies; None for a file that lies elsewhere."""
    place = judgements.parent
    if place.name == "qrels" or (place.name == "default" and queries_of(place.parent)):
        return place.parent
    if place.name.endswith(_BESIDE) and place.name != _BESIDE:
        return place.parent / place.name.removesuffix(_BESIDE)
    return place if "qrels" in re.split(r"[^a-z0-9]+", judgements.name.lower()) else None


def queries_of(folder: Path) -> list[Path]:
    """The files of queries of a set in BEIR's or the hub's layout; none where there are none."""
    return _matching(folder, "queries") or _files(folder / "queries")


def bright_golds(path: Path) -> dict[str, frozenset[str]]:
    """Gold passages and documents of each query in a file of BRIGHT's examples; {} for a file of another layout."""
    if path.parent.name != "examples" or suffix_of(path) not in _SUFFIXES:
        return {}
    rows = read_rows(path)
    if not all("query" in row.fields and isinstance(row.fields.get("gold_ids"), list) for row in rows):
        return {}
    kinds = [name for name in ("gold_ids", "gold_ids_long") if name in rows[0].fields]
    return {row.text("query"): frozenset(gold for name in kinds for gold in _ids(row, name)) for row in rows}


def _bright_of_folder(folder: Path, domain: str, long: bool) -> RetrievalSet:
    chosen = _bright(domain, _parts(folder / "examples", domain), None, long)
    documents = _documents(folder, long)
    found = _parts(documents, domain)
    corpus = found[0] if len(found) == 1 else documents / f"{domain}-*{found[0].suffix}"
    return replace(chosen, corpus=str(corpus))


def _bright(domain: str, examples: Iterable[str | Path], corpus: str | None, long: bool) -> RetrievalSet:
    queries: dict[str, Question] = {}
    qrels: Qrels = {}
    excluded: dict[str, frozenset[str]] = {}
    for row in (row for path in examples for row in read_rows(path)):
        query = str(row.fields.get("id", ""))
        if not query or query in queries:
            raise row.error(f"the id '{query}' is {'there already' if query else 'blank'}")
        queries[query] = Question(query, row.text("query"), (), kind=level_of(row))
        excluded[query] = frozenset(_ids(row, "excluded_ids"))
        gold = _ids(row, "gold_ids_long" if long else "gold_ids")
        if gold:
            qrels[query] = dict.fromkeys(gold, 1)
    if not qrels:
        what = "long documents" if long else "judgements"
        raise DataError(f"BRIGHT's {domain} has no {what}", f"these have: {', '.join(LONG_DOMAINS)}" if long else "")
    name = f"bright-{domain}{'-long' if long else ''}"
    return RetrievalSet(name, queries, qrels, corpus, excluded, split="long" if long else "standard")


def _ids(row: RawRow, name: str) -> list[str]:
    found = row.fields.get(name)
    if not isinstance(found, list):
        raise row.error(f"'{name}' is not a list of ids")
    return [str(identifier) for identifier in found if identifier != _NO_ID]


def _documents(folder: Path, long: bool) -> Path:
    return folder / ("long_documents" if long else "documents")


def _owner(given: str) -> str:
    """Who publishes the set; raises DataError where ``given`` can be no name."""
    owner, slash, name = given.rpartition("/")
    if slash and _OF_THE_HUB.fullmatch(given) and not Path(owner).is_dir():
        return owner
    if slash or name not in BEIR:
        kind = "folder" if slash else "set of BEIR or folder"
        raise DataError(f"there is no {kind} '{given}'", did_you_mean(name, BEIR))
    return BEIR_OWNER


def _corpus_of(folder: Path) -> str:
    inside = folder / "corpus"
    place = inside if inside.is_dir() else folder
    corpus_files(place)  # says what is missing
    return str(place)


def _judgements(folder: Path, split: str) -> list[Path]:
    """The files of ``split``, in the folder itself or in the one beside it."""
    places = [folder / "qrels", folder.parent / f"{folder.name}{_BESIDE}", folder / "default"]
    for place in places:
        found = _matching(place, split) or (_matching(place, _DEV_ON_THE_HUB) if split == "dev" else [])
        if found:
            return found
    there = [place for place in places if place.is_dir()]
    names = [path.name for place in there for path in _files(place)]
    wanted = f"{split}.tsv"
    hint = did_you_mean(wanted, names) if names else ""
    raise DataError(f"no file {(there or places)[0] / wanted}", hint)


def _parts(folder: Path, name: str) -> list[Path]:
    """The file ``name.*`` of a folder, its shards, or the files in the folder ``name``. Raises DataError."""
    found = _matching(folder, name) or _files(folder / name)
    if not found:
        near = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        raise DataError(f"no file {folder / name}.jsonl", did_you_mean(f"{name}.jsonl", near) if near else "")
    return found


def _matching(folder: Path, name: str) -> list[Path]:
    """The files of one format that hold ``name``: one, or its shards."""
    found = [path for path in _files(folder) if _base(path) == name]
    whole = [path for path in found if stem_of(path) == name]
    return whole[:1] or found


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files: Sequence[Path] = [path for path in folder.iterdir() if path.is_file() and suffix_of(path) in _SUFFIXES]
    return sorted(files, key=lambda path: (_SUFFIXES.index(suffix_of(path)), path.name))


def _base(path: Path) -> str:
    """The name without its suffixes and the number of a shard, ``-00000-of-00002``."""
    return re.sub(r"-\d+-of-\d+$", "", stem_of(path))
