"""One encoder for texts, pages and a second language, beside an encoder for each, on the world of `pages_world.py`.

    python benchmarks/pages_unified.py [--seeds 0] [--out runs/pages_world] [--table]

Three sources ask about the same entities: texts by questions in their own words, the same texts by paraphrases that
share no word with them (the second language), and their pages by questions in their own words. An encoder of each
source is trained for 200 steps, the unified one for 200 steps of each, one source a batch. Each is asked for the 430
held-out entities of all three sources, in pools of 1,000: the bar is that the unified encoder is within .05 of the
encoder of the source.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from family_study import Result, Searched, Task, Trained, beir_task, study, table
from pages_world import BUDGET, DSE, STEPS, made_world, pages_of, world_of, write_pools, write_train
from pages_world import encoder as page_encoder
from pages_world import prepare as prepare_pages

from envs.toy_world.write import write_world
from retrieval.pages.letters import LETTERS
from sleuth.layout import RetrieverRunLayout

SOURCES = ("text", "page", "paraphrase")


def source_of(folder: Path, source: str, part: str) -> Path:
    if source == "page":
        return pages_of(folder, "aligned", part)
    return folder / ("texts" if source == "text" else "paraphrases") / part


def data_of(folder: Path, source: str) -> list[dict[str, Any]]:
    path = str(source_of(folder, source, "train"))
    return [{"path": path, "split": "train"}, {"path": path, "split": "train_searches", "limit": 3_200}]


def encoder(sources: Sequence[str]) -> Callable[[Path], dict[str, Any]]:
    """The training run of an encoder of ``sources``, as many steps each; what it has after the last is kept."""
    steps = STEPS * len(sources)

    def of(folder: Path) -> dict[str, Any]:
        letters = str(pages_of(folder, "aligned", "train") / LETTERS)
        reading = {"reading": {"letters": letters}} if "page" in sources else {}
        return {
            **page_encoder("plain", "aligned", DSE)(folder),
            "data": [row for source in sources for row in data_of(folder, source)],
            "training": {**BUDGET, **DSE, **reading, "steps": steps, "batches": "one_source"},
            "evaluation": {
                "path": str(source_of(folder, sources[0], "watch")),
                "split": "test",
                "every": steps,
            },
        }

    return of


def index(of: str, source: str) -> Callable[[Path], dict[str, Any]]:
    """The pool of ``source`` by the encoder ``of``."""
    return lambda folder: {
        "kind": "dense",
        "index": str(folder / "indexes" / f"{of}-{'page' if source == 'page' else 'text'}"),
        "corpus": str(source_of(folder, "page" if source == "page" else "text", "pool") / "corpus.jsonl"),
        "encoder": str(RetrieverRunLayout(folder / of).encoder),
    }


def task(source: str) -> Callable[[Path], Task]:
    return lambda folder: beir_task(source_of(folder, source, "pool"), "test")


TRAINED: Sequence[Trained] = [
    *(Trained(f"only-{source}", encoder([source])) for source in SOURCES),
    Trained("unified", encoder(SOURCES)),
]
SEARCHED: Sequence[Searched] = [
    Searched(f"{one.name} on {source}", index(one.name, source), [one.name], task(source))
    for one in TRAINED
    for source in SOURCES
]


def prepare(folder: Path, seed: int) -> None:
    prepare_pages(folder, seed)
    paraphrases = folder / "paraphrases"
    if not (paraphrases / "pool" / "qrels").exists():
        shutil.rmtree(paraphrases, ignore_errors=True)
        made = made_world(seed, paraphrase=1.0)
        write_world(made, world_of(paraphrases), overwrite=True)
        write_train(made, world_of(paraphrases), paraphrases / "train")
        write_pools(made, paraphrases, seed)


def matrix(results: Sequence[Result]) -> str:
    """Markdown: recall@5 of each encoder on each source, means over seeds."""
    names = [one.name for one in TRAINED]
    lines = [f"| encoder | {' | '.join(SOURCES)} | mean |", "| --- " * (len(SOURCES) + 2) + "|"]
    for name in names:
        found = [[r.mean("R@5") for r in results if r.name == f"{name} on {source}"] for source in SOURCES]
        if all(found):
            values = [fmean(of) for of in found]
            lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} | {fmean(values):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pages_world"))
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    out = options.out
    searched = [] if options.table else SEARCHED
    found = study(out, options.seeds, TRAINED, searched, task("page"), prepare, file="unified.jsonl")
    print(matrix(found), "\n", sep="")
    for source in SOURCES:
        mine = [r for r in found if r.name in (f"only-{source} on {source}", f"unified on {source}")]
        print(table(mine, f"only-{source} on {source}"), "\n", sep="")


if __name__ == "__main__":
    main()
