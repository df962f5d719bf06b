"""Every family of retrievers on the made-up world, all questions paraphrased: the same rows, steps and batches.

    python benchmarks/families_world.py [--seeds 0 1 2] [--out runs/families_world] [--only NAME …] [--table]

BM25 finds nothing there, as questions and passages share no word. A two-layer encoder is trained from random weights
for each family, 200 steps of 64 of 6,400 questions and 3,200 searches; 1,000 questions about held-out entities are
searched among 10,500 passages. SPLADE is trained with several weights of its regulariser, and cut to its 40 largest
weights. An interrupted study goes on; more seeds can be added.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from family_study import Searched, Task, Trained, beir_task, study, table

from envs.toy_world.config import WorldSettings
from envs.toy_world.generate import generate_world
from envs.toy_world.write import write_world
from sleuth.layout import RetrieverRunLayout

TEST = 1_000
BUDGET = {"batch_size": 64, "hard_negatives": 0, "steps": 200, "learning_rate": 1e-3, "warmup_steps": 20}
SCRATCH = {"hidden_size": 128, "layers": 2, "heads": 4, "max_positions": 64, "dropout": 0.0}
LENGTHS = {"query_max_tokens": 48, "passage_max_tokens": 48}
LONG = 96
"""Tokens of an expanded passage."""


def world_of(folder: Path) -> Path:
    return RetrieverRunLayout(folder).world


def rows(folder: Path) -> list[dict[str, Any]]:
    searches = {"path": str(world_of(folder)), "split": "train_searches", "limit": 3_200}
    return [{"path": str(world_of(folder)), "split": "train"}, searches]


def encoder(
    preset: str, training: dict[str, Any], settings: dict[str, Any] | None = None, **shape: Any
) -> Callable[[Path], dict[str, Any]]:
    """The training run of an encoder from random weights."""

    def of(folder: Path) -> dict[str, Any]:
        world = world_of(folder)
        scratch = {**SCRATCH, "vocabulary_file": str(world / "vocabulary.txt"), **shape}
        start = {"preset": preset, "scratch": scratch, "scratch_corpus": str(world / "corpus.jsonl")}
        dev = {"path": str(world), "split": "dev", "passages": 2_000, "every": BUDGET["steps"]}
        return {
            "encoder": {**start, "settings": {**LENGTHS, **(settings or {})}},
            "data": rows(folder),
            "training": {**BUDGET, **training},
            "evaluation": dev,
        }

    return of


def index(kind: str, of: str, name: str = "", **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """An index of the world by the encoder ``of``."""
    return lambda folder: {
        "kind": kind,
        "index": str(folder / "indexes" / (name or of)),
        "corpus": str(world_of(folder) / "corpus.jsonl"),
        "encoder": str(RetrieverRunLayout(folder / of).encoder),
        **settings,
    }


def cut(of: str, terms: int) -> Callable[[Path], dict[str, Any]]:
    """The sparse encoder ``of`` with the largest ``terms`` weights of every text."""
    whole = index("sparse", of, f"{of}-{terms}-terms")
    return lambda folder: {
        **whole(folder),
        "encoder": {"kind": "sparse", "backbone": str(RetrieverRunLayout(folder / of).encoder), "max_terms": terms},
    }


def hybrid(*parts: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"kind": "hybrid", "parts": [part(folder) for part in parts], "rrf_k": 10}


def bm25(folder: Path) -> dict[str, Any]:
    return {"kind": "bm25", "index": str(folder / "indexes" / "bm25"), "corpus": str(world_of(folder) / "corpus.jsonl")}


def reranked(
    inner: Callable[[Path], dict[str, Any]], model: Callable[[Path], Path]
) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"kind": "rerank", "model": str(model(folder)), "inner": inner(folder), "depth": 20}


def reranker(folder: Path) -> dict[str, Any]:
    """A cross-encoder on the dense encoder's backbone, with negatives that the dense retriever finds."""
    return {
        "kind": "reranker",
        "reranker": {
            "backbone": str(RetrieverRunLayout(folder / "dense").encoder),
            "max_tokens": 64,
            "hard_negatives": 7,
            "batch_size": 16,
            "steps": BUDGET["steps"],
            "learning_rate": 1e-3,
            "warmup_steps": BUDGET["warmup_steps"],
            "loss": {"kind": "listnet"},
        },
        "data": rows(folder)[:1],
        "mining": {"retriever": DENSE(folder), "negatives": 15, "last_rank": 30},
    }


def expanded(pieces: bool) -> Callable[[Path], dict[str, Any]]:
    """uniCOIL whose passages have the words, or all tokens, that SPLADE-doc adds, which are those that queries have."""

    def of(folder: Path) -> dict[str, Any]:
        expansion = {"encoder": str(RetrieverRunLayout(folder / "splade-doc").encoder), "terms": TERMS}
        settings = {"passage_max_tokens": LONG, "expansion": {**expansion, "pieces": pieces}}
        return encoder("unicoil", {"temperature": 1.0}, settings, max_positions=LONG)(folder)

    return of


def splade(weight: float) -> Callable[[Path], dict[str, Any]]:
    return encoder("splade", {"preset": "splade", "regulariser": {"query": weight, "passage": weight}})


DENSE = index("dense", "dense")
COLBERT = index("multivector", "colbert")
WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of SPLADE's regulariser, from the weakest on; queries and passages have the same."""
CHOSEN = 0.03
SPLADE = index("sparse", f"splade-{CHOSEN}")
CUTS = ((0.001, 40), (0.01, 80), (0.01, 40), (0.01, 20))
"""Weights of the regulariser, and to how many words each text is cut."""
TERMS = 40
COLBERT_SETTINGS = {"query_prompt": "", "passage_prompt": "", "expand_to": 0}

TRAINED: Sequence[Trained] = [
    Trained("dense", encoder("plain", {"temperature": 0.05})),
    *(Trained(f"splade-{weight}", splade(weight)) for weight in WEIGHTS),
    Trained(
        "splade-doc", encoder("splade_doc", {"preset": "splade", "regulariser": {"query": 0.0, "passage": CHOSEN}})
    ),
    Trained("unicoil", encoder("unicoil", {"temperature": 1.0})),
    Trained("unicoil-words", expanded(pieces=False), needs=["splade-doc"]),
    Trained("unicoil-pieces", expanded(pieces=True), needs=["splade-doc"]),
    Trained("colbert", encoder("colbert", {"temperature": 1.0}, COLBERT_SETTINGS)),
    Trained("cross-encoder", reranker, needs=["dense"]),
]
SEARCHED: Sequence[Searched] = [
    Searched("bm25", bm25),
    Searched("dense", DENSE, needs=["dense"]),
    Searched("splade", SPLADE, needs=[f"splade-{CHOSEN}"]),
    Searched("splade-doc", index("sparse", "splade-doc"), needs=["splade-doc"]),
    Searched("unicoil", index("sparse", "unicoil"), needs=["unicoil"]),
    Searched("unicoil, expanded by words", index("sparse", "unicoil-words"), ["unicoil-words"]),
    Searched("unicoil, expanded by pieces", index("sparse", "unicoil-pieces"), ["unicoil-pieces"]),
    Searched("colbert, exact", COLBERT, needs=["colbert"]),
    *(
        Searched(
            f"colbert, {bits}-bit residuals",
            index("multivector", "colbert", f"colbert-{bits}", index_type="residual", bits=bits),
            needs=["colbert"],
        )
        for bits in (2, 1)
    ),
    Searched("colbert, muvera", index("multivector", "colbert", "muvera", index_type="muvera"), needs=["colbert"]),
    Searched("dense + splade", hybrid(DENSE, SPLADE), needs=["dense", f"splade-{CHOSEN}"]),
    Searched("dense + colbert", hybrid(DENSE, COLBERT), needs=["dense", "colbert"]),
    Searched(
        "dense, reranked by colbert",
        reranked(DENSE, lambda folder: RetrieverRunLayout(folder / "colbert").encoder),
        needs=["dense", "colbert"],
    ),
    Searched(
        "dense, reranked by a cross-encoder",
        reranked(DENSE, lambda folder: RetrieverRunLayout(folder / "cross-encoder").reranker),
        needs=["cross-encoder"],
    ),
    *(
        Searched(f"splade, regulariser {weight}", index("sparse", f"splade-{weight}"), needs=[f"splade-{weight}"])
        for weight in WEIGHTS
    ),
    *(
        Searched(f"splade, regulariser {weight}, {terms} terms", cut(f"splade-{weight}", terms), [f"splade-{weight}"])
        for weight, terms in CUTS
    ),
]


def prepare(folder: Path, seed: int) -> None:
    if not (world_of(folder) / "corpus.jsonl").exists():
        world = WorldSettings(seed=seed, paraphrase=1.0, dev=300, test=TEST)
        write_world(generate_world(world), world_of(folder), overwrite=True)


def task_of(folder: Path) -> Task:
    return beir_task(world_of(folder), "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/families_world"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    searched = [] if options.table else SEARCHED
    print(table(study(options.out, options.seeds, TRAINED, searched, task_of, prepare, options.only), "dense"))


if __name__ == "__main__":
    main()
