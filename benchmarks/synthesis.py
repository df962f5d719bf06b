"""What written rows are worth on real text: BERT-tiny and MiniLM's query tower on Wikipedia, by training data.

    sleuth synthesize configs/synthesize_wiki.yaml
    sleuth synthesize configs/synthesize_wiki.yaml --out runs/gecko_wiki --set limit=100 --set keep=null --set \\
        'recipe={kind: gecko, retriever: {kind: bm25, index: "{out}/bm25", corpus: "${SLEUTH_DATA}/wiki/corpus.jsonl"}}'
    python benchmarks/synthesis.py --mlm FOLDER --written runs/synthesize_wiki/written.jsonl [--seeds 0 1 2]
                                   [--corpus pool whole medquad afriqa] [--only NAME …] [--steps 300] [--pool 12000]
                                   [--out FOLDER]
    python benchmarks/synthesis.py --mlm FOLDER --written FILE --corpus pool --table

The first writes the rows, the second relabels ten neighbours of 100 queries as Gecko does, the third trains and
measures: cloze (sentences of passages), written rows, 1,000 judged rows, all judged rows, stages of them, their merge,
mixtures, an adapter. A fixed pool of 12,000 passages has the golds of all dev questions. Differences are to ``judged``,
query by query over all seeds; of the merge also its parts and their mean. Cloze draws from the whole corpus, golds of
dev questions included, which the written rows leave out. An interrupted study goes on; arms and seeds
can be added, other steps or another pool want another folder.

About 3 CPU minutes a BERT-tiny arm and seed at 300 steps, index of the pool included. MiniLM's vectors of all passages
take 35 CPU minutes once; a folder that has them can be linked as OUT/minilm-whole. The rows take about 3.5 CPU hours
through transformers. ``--only judged --steps 4 --pool 1 --seeds 0`` shows in a minute or two that it runs.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from families_wiki import DATA, LORA, afriqa, dev, medquad, minilm, tiny
from family_study import Searched, Trained, study, table

from retrieval.config import RetrieverSettings
from retrieval.evaluation.judgements import read_qrels
from retrieval.open import open_retriever
from sleuth.layout import RetrieverRunLayout
from sleuth.runs import RunFolder

POOL = 12_000
MERGED = "written and judged, merged"
FEW = 1_000
BUDGET = {"batch_size": 64, "hard_negatives": 0, "learning_rate": 5e-4, "warmup_steps": 30, "temperature": 0.05}
TOWER = {"train": "query", "batch_size": 64, "temperature": 0.05, "learning_rate": 2e-5}


def pool_of(folder: Path) -> Path:
    return folder.parent / "pool.jsonl"


def prepare(folder: Path, passages: int, vectors: Path | None) -> None:
    """The pool: golds of the dev questions, and others drawn once for all seeds; and MiniLM's ``vectors`` if wanted."""
    if vectors is not None and not vectors.exists():
        whole = {"kind": "dense", "index": vectors, "corpus": DATA / "wiki" / "corpus.jsonl", "encoder": minilm()}
        open_retriever(RetrieverSettings.model_validate(whole), cached=False)
    if pool_of(folder).exists():
        return
    golds = {passage for judged in read_qrels(DATA / "wiki" / "qrels" / "dev.tsv").values() for passage in judged}
    lines = (DATA / "wiki" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    ids = [json.loads(line)["_id"] for line in lines]
    others = sorted(set(ids) - golds)
    kept = golds | set(random.Random(0).sample(others, max(0, passages - len(golds))))
    chosen = (line + "\n" for line, name in zip(lines, ids, strict=True) if name in kept)
    pool_of(folder).write_text("".join(chosen), encoding="utf-8")


def vectors_of(out: Path) -> Path:
    """MiniLM's vectors of all passages, which its query tower learns against."""
    return out / "minilm-whole"


def sources(written: Path) -> dict[str, dict[str, Any]]:
    judged = {"path": str(DATA / "wiki"), "split": "train"}
    return {
        "cloze": {"path": str(DATA / "wiki" / "corpus.jsonl"), "layout": "cloze", "cap": 12_000},
        "written": {"path": str(written)},
        "judged 1,000": {**judged, "cap": FEW},
        "judged": judged,
    }


def trainings(mlm: str, written: Path, steps: int, out: Path) -> dict[str, dict[str, Any]]:
    """The settings of each arm. Arms of stages have as many steps in all as those of one."""
    given, half = sources(written), {**BUDGET, "steps": steps // 2}
    start = {"encoder": tiny("plain", mlm)()}
    whole = {**BUDGET, "steps": steps}
    one = {name: {**start, "data": [source], "training": whole} for name, source in given.items()}

    def staged(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "data": [given[name]], "training": half} for name in names]

    watched = {"path": str(DATA / "wiki"), "split": "dev", "corpus": str(out / "pool.jsonl"), "k": 5}
    merged = [
        {"name": "written", "data": [given["written"]], "training": half},
        {"name": "judged", "data": [given["judged"]], "training": half, "start": "base"},
        {"name": "merged", "kind": "merge", "parts": ["written", "judged"], "evaluation": watched},
    ]
    mixed = [{**given["written"], "weight": 1}, {**given["judged"], "weight": 2}]
    tower = {
        "encoder": {"backbone": minilm()},
        "training": {**TOWER, "steps": steps // 2, "index": str(vectors_of(out))},
    }
    return {
        **one,
        "judged, adapter": {**one["judged"], "training": {**whole, **LORA}},
        "cloze, then judged": {**start, "stages": staged("cloze", "judged")},
        "written, then judged": {**start, "stages": staged("written", "judged")},
        MERGED: {**start, "stages": merged},
        "written and judged, mixed": {**start, "data": mixed, "training": whole},
        "minilm: judged": {**tower, "data": [given["judged"]]},
        "minilm: written and judged": {**tower, "data": mixed},
    }


def named(name: str) -> str:
    """A name for folders."""
    return "".join(char if char.isalnum() else "-" for char in name)


def searches(names: list[str], corpus: str) -> list[Searched]:
    tasks = {"pool": dev, "whole": dev, "medquad": medquad, "afriqa": afriqa}
    places = {
        "whole": DATA / "wiki" / "corpus.jsonl",
        "medquad": DATA / "medquad" / "corpus.jsonl",
        "afriqa": DATA / "afriqa" / "fr" / "corpus.jsonl",
    }

    def of(name: str) -> Searched:
        def settings(folder: Path) -> dict[str, Any]:
            frozen = name.startswith("minilm")  # its arms and seeds share the vectors of passages
            index = folder.parent / f"minilm-{corpus}" if frozen else folder / "indexes" / f"{named(name)}-{corpus}"
            return {
                "kind": "dense",
                "index": str(index),
                "corpus": str(places.get(corpus, pool_of(folder))),
                "encoder": str(RetrieverRunLayout(folder / named(name)).encoder),
            }

        return Searched(f"{name} ({corpus})", settings, [named(name)], tasks[corpus])

    return [of(name) for name in names]


def merges(out: Path, seeds: list[int]) -> list[str]:
    """Of every seed the merge beside its parts: recall@5 of the dev questions in the pool."""
    said = []
    for seed in seeds:
        whole = RetrieverRunLayout(out / f"seed-{seed}" / named(MERGED))
        found = RunFolder(whole.stage(3).out).stage_info("merge")
        if found:
            parts = ", ".join(f"{name} {figure:.3f}" for name, figure in found["parts"].items())
            said.append(
                f"seed {seed}: merged {found['best']:.3f}, mean of its parts {found['mean_of_parts']:.3f} ({parts})"
            )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlm", required=True, help="Folder of the masked language model.")
    parser.add_argument("--written", type=Path, required=True, help="Rows of sleuth synthesize.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pool", type=int, default=POOL, help="Passages; the golds of all dev questions at least.")
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis"))
    parser.add_argument("--corpus", nargs="+", default=["pool"], help="pool, whole, medquad, afriqa")
    parser.add_argument("--only", nargs="+", default=[], help="Arms, by their names in the table.")
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    given = parser.parse_args()
    arms = trainings(given.mlm, given.written, given.steps, given.out)
    trained = [Trained(named(name), lambda _folder, values=values: values) for name, values in arms.items()]  # type: ignore[misc]
    names = [name for name in arms if not given.only or name in given.only]
    vectors = vectors_of(given.out) if any(name.startswith("minilm") for name in names) else None
    for corpus in given.corpus:
        wanted = [] if given.table else searches(names, corpus)
        results = study(
            given.out, given.seeds, trained, wanted, dev, lambda folder, _: prepare(folder, given.pool, vectors)
        )
        mine = [result for result in results if result.name.endswith(f"({corpus})")]
        print(f"\n{corpus}\n" + table(mine, f"judged ({corpus})"), flush=True)
    print("\n".join(merges(given.out, given.seeds)))


if __name__ == "__main__":
    main()
