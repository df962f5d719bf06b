"""Page retrievers from scratch on the made-up world, rendered: questions about held-out pages, a pool of 1,000.

    python benchmarks/pages_world.py [--seeds 0 1 2] [--out runs/pages_world] [--only NAME …] [--table]

Every passage becomes a page of 160 x 112 pixels. Encoders start from random weights and never see the text layer of a
page: they learn from 6,400 questions and 3,200 searches about other pages, and from the places of the letters, which
are supervision. The gold of a question is the page of the entity that it names, one of 430 whose entities occur in no
training page. On aligned pages each letter stands in a patch of its own; jittered pages are set in the same font as it
spaces itself, each moved by up to 7 pixels. Where pages are mixed, the name that a page is about stands in the picture
of every second one alone, as in a figure or a logo, and its text layer has lost it. An interrupted study goes on; more
seeds can be added.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from family_study import Searched, Task, Trained, beir_task, study, table

from envs.toy_world.config import KindMix, WorldSettings
from envs.toy_world.generate import World, generate_world
from envs.toy_world.write import named_titles, write_world
from retrieval.pages.config import PageSettings
from retrieval.pages.letters import LETTERS
from retrieval.pages.write import write_pages
from sleuth.layout import RetrieverRunLayout
from sleuth.seeding import derive_seed
from sleuth.trajectories import read_jsonl

POOL, HELD_OUT, WATCHED = 1_000, 430, 200
STEPS = 200
BUDGET = {"batch_size": 64, "hard_negatives": 0, "steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 30}
ALIGNED = {"width": 160, "height": 112, "size": 13, "cell": (8, 16), "margin": 0}
JITTERED = {"width": 176, "height": 128, "size": 13, "margin": 0, "jitter": 7}
POOLED = (2, 3, 5, 10)
RENDERED: Mapping[str, dict[str, Any]] = {"aligned": ALIGNED, "jittered": JITTERED}


def world_of(folder: Path) -> Path:
    return RetrieverRunLayout(folder).world


def pages_of(folder: Path, rendering: str, part: str) -> Path:
    return folder / "pages" / f"{rendering}-{part}"


def encoder(
    preset: str, rendering: str, training: dict[str, Any], settings: dict[str, Any] | None = None, letters: bool = True
) -> Callable[[Path], dict[str, Any]]:
    """The training run of a page encoder from random weights."""

    def of(folder: Path) -> dict[str, Any]:
        pages = pages_of(folder, rendering, "train")
        searches = {"path": str(pages), "split": "train_searches", "limit": 3_200}
        reading = {"reading": {"letters": str(pages / LETTERS)}} if letters else {}
        lengths = {"query_max_tokens": 96, "passage_max_tokens": 256, "reads": "image"}
        return {
            "encoder": {
                "preset": preset,
                "scratch": {"family": "pages"},
                "scratch_corpus": str(pages / "corpus.jsonl"),
                "settings": {**lengths, **(settings or {})},
            },
            "data": [{"path": str(pages), "split": "train"}, searches],
            "training": {**BUDGET, **reading, **training},
            "evaluation": {"path": str(pages_of(folder, rendering, "watch")), "split": "test", "every": 100},
        }

    return of


def index(kind: str, of: str, rendering: str, **made: Any) -> Callable[[Path], dict[str, Any]]:
    """The index of what the encoder ``of`` makes of the pool; ``made``: how it is made, if not as usual."""
    rest = [] if rendering in RENDERED else [rendering]
    name = "-".join([of, *rest, *(f"{key}-{value}" for key, value in made.items())])
    return lambda folder: {
        "kind": kind,
        "index": str(folder / "indexes" / name),
        "corpus": str(pages_of(folder, rendering, "pool") / "corpus.jsonl"),
        "encoder": str(RetrieverRunLayout(folder / of).encoder),
        **made,
    }


def bm25(rendering: str) -> Callable[[Path], dict[str, Any]]:
    name = "bm25" if rendering == "aligned" else f"bm25-{rendering}"
    return lambda folder: {
        "kind": "bm25",
        "index": str(folder / "indexes" / name),
        "corpus": str(pages_of(folder, rendering, "pool") / "corpus.jsonl"),
    }


def both(folder: Path) -> dict[str, Any]:
    return {"kind": "hybrid", "parts": [bm25("mixed")(folder), index("dense", "dse", "mixed")(folder)]}


DSE = {"temperature": 0.05}
COLPALI = {"temperature": 1.0}
PATCHES = {"query_prompt": "", "passage_prompt": "", "expand_to": 0, "dimensions": 64, "skipped_tokens": []}

TRAINED: Sequence[Trained] = [
    Trained("dse", encoder("plain", "aligned", DSE)),
    Trained("colpali", encoder("colbert", "aligned", COLPALI, PATCHES)),
    Trained("dse-unread", encoder("plain", "aligned", DSE, letters=False)),
    Trained("dse-jittered", encoder("plain", "jittered", DSE)),
    Trained("colpali-jittered", encoder("colbert", "jittered", COLPALI, PATCHES)),
]
SEARCHED: Sequence[Searched] = [
    Searched("bm25 on the text layer", bm25("aligned")),
    Searched("dse", index("dense", "dse", "aligned"), ["dse"]),
    Searched("colpali", index("multivector", "colpali", "aligned"), ["colpali"]),
    *(
        Searched(
            f"colpali, {factor} x fewer vectors",
            index("multivector", "colpali", "aligned", pool_factor=factor),
            ["colpali"],
        )
        for factor in POOLED
    ),
    Searched("dse, no reading loss", index("dense", "dse-unread", "aligned"), ["dse-unread"]),
    Searched("bm25, mixed", bm25("mixed")),
    Searched("dse, mixed", index("dense", "dse", "mixed"), ["dse"]),
    Searched("bm25 + dse, mixed", both, ["dse"]),
    Searched("dse, jittered", index("dense", "dse-jittered", "jittered"), ["dse-jittered"]),
    Searched("colpali, jittered", index("multivector", "colpali-jittered", "jittered"), ["colpali-jittered"]),
]


def prepare(folder: Path, seed: int) -> None:
    if not (pages_of(folder, "jittered", "pool") / "corpus.jsonl").exists():
        _render(folder, seed)
    if not (pages_of(folder, "mixed", "pool") / "corpus.jsonl").exists():
        _lose_names(pages_of(folder, "aligned", "pool"), pages_of(folder, "mixed", "pool"))


def made_world(seed: int, paraphrase: float = 0.0) -> World:
    kinds = KindMix(comparison=0.0, yes_no=0.0)
    return generate_world(WorldSettings(seed=seed, dev=4_000, test=1, kinds=kinds, paraphrase=paraphrase))


def _render(folder: Path, seed: int) -> None:
    made = made_world(seed)
    write_world(made, world_of(folder), overwrite=True)
    texts = folder / "texts"
    write_train(made, world_of(folder), texts / "train")
    write_pools(made, texts, seed)
    for part in ("train", "watch", "pool"):
        for rendering, settings in RENDERED.items():
            if not pages_of(folder, rendering, part).exists():
                write_pages(texts / part, pages_of(folder, rendering, part), PageSettings(**settings))


def _lose_names(pages: Path, out: Path) -> None:
    """The same pictures; of every second page the text layer lacks the name that the page is about."""
    shutil.copytree(pages, out, ignore=shutil.ignore_patterns("corpus.jsonl"))
    rows = [row for _, row in read_jsonl(pages / "corpus.jsonl")]
    for row in rows[::2]:
        row["text"] = row["text"].replace(row["title"], "").strip() or "."
        row["title"] = ""
    _write(out / "corpus.jsonl", rows)


def write_train(made: World, world: Path, out: Path) -> None:
    """The passages of training entities, with their questions and searches, which are copied from ``world``."""
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "corpus.jsonl", [_row(p) for p in made.passages if made.entities[p.title].split == "train"])
    shutil.copyfile(world / "queries.jsonl", out / "queries.jsonl")
    (out / "qrels").mkdir(exist_ok=True)
    for split in ("train", "train_searches"):
        shutil.copyfile(world / "qrels" / f"{split}.tsv", out / "qrels" / f"{split}.tsv")


def write_pools(made: World, out: Path, seed: int) -> None:
    """Held-out passages with a question each: 430 among 1,000 are the pool, 200 others choose the step that is kept."""
    rng = random.Random(derive_seed(seed, "pool"))
    asked: dict[str, str] = {}
    for plan in made.plans["dev"]:
        asked.setdefault(named_titles(plan)[0], plan.question.text)
    chosen = rng.sample(sorted(asked), HELD_OUT + WATCHED)
    others = [p.title for p in made.passages if made.entities[p.title].split == "train"]
    more = rng.sample(sorted(others), 2 * (POOL - HELD_OUT))
    _write_task(made, out / "pool", asked, chosen[:HELD_OUT], more[: POOL - HELD_OUT])
    _write_task(made, out / "watch", asked, chosen[HELD_OUT:], more[POOL - HELD_OUT :])


def _write_task(made: World, out: Path, asked: Mapping[str, str], golds: Sequence[str], others: Sequence[str]) -> None:
    """A question about each of ``golds``, and the passages of them and ``others``."""
    titles, ids = {*golds, *others}, {p.title: p.id for p in made.passages}
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "corpus.jsonl", [_row(p) for p in made.passages if p.title in titles])
    _write(out / "queries.jsonl", [{"_id": f"q-{ids[title]}", "text": asked[title]} for title in golds])
    (out / "qrels").mkdir(exist_ok=True)
    lines = "".join(f"q-{ids[title]}\t{ids[title]}\t1\n" for title in golds)
    (out / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")


def _row(passage: Any) -> dict[str, Any]:
    return {"_id": passage.id, "title": passage.title, "text": passage.text}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task_of(folder: Path) -> Task:
    return beir_task(pages_of(folder, "aligned", "pool"), "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/pages_world"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    searched = [] if options.table else SEARCHED
    print(table(study(options.out, options.seeds, TRAINED, searched, task_of, prepare, options.only), "dse"))


if __name__ == "__main__":
    main()
