"""What a real writer gives by each recipe: valid rows, the share that each filter keeps, seconds and tokens.

    SLEUTH_DATA=... python benchmarks/synthesis_rates.py [--writer smollm2] [--backend auto] [--limit 40]
                                                         [--only NAME[=LIMIT] …] [--out runs/synthesis_rates] [--table]

``--limit``: units (passages, rows, or for E5 numbers) a recipe; ``gecko`` writes that many queries and ranks ten
passages for each. ``--writer`` is a model, or the address of a server. Passages are Wikipedia's, rows those of its
training questions. One line a recipe goes to ``results.jsonl``; what is finished is not written again, and a recipe
that was interrupted goes on. ``e5`` and ``reasonir`` write long texts: they take about ten times as long a unit as
``queries``. Seconds are of this process's CPU, whatever else the machine does; of a server none are known.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import synthesis_rates

from agent.writing.asks import Writer
from agent.writing.config import WriterSettings
from sleuth.settings import validate
from sleuth.trajectories import open_for_append, read_jsonl
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.job import run_synthesis
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.run import Progressing

DATA = Path(os.environ.get("SLEUTH_DATA", "data"))
CORPUS = str(DATA / "wiki" / "corpus.jsonl")


@functools.cache
def writer(settings: str) -> Writer:
    """One for all recipes: an engine takes long to start."""
    return WriterSettings.model_validate(json.loads(settings)).open()


def filters(bm25: Mapping[str, Any], most_words: int) -> list[Any]:
    length = {"kind": "length", "min_words": 4, "max_words": most_words}
    found = {"kind": "round_trip", "retriever": bm25, "k": 10}
    return [length, "language", "leakage", "near_duplicates", found, "answerable"]


def recipes(out: Path) -> dict[str, dict[str, Any]]:
    bm25 = {"kind": "bm25", "index": str(out / "bm25"), "corpus": CORPUS}
    about = {"corpus": CORPUS, "passages": {"min_words": 30, "show_words": 120}}
    judged = [{"path": str(DATA / "wiki"), "split": "train", "cap": 2_000}]
    short, long = filters(bm25, 60), filters(bm25, 2_500)
    unfound = [one for one in long if not (isinstance(one, dict) and one["kind"] == "round_trip")]
    return {
        "queries": {"recipe": {"kind": "queries"}, **about, "filters": short},
        "gecko": {"recipe": {"kind": "gecko", "retriever": bm25, "neighbours": 10}, **about},
        "qwen3": {"recipe": {"kind": "qwen3"}, **about, "filters": short},
        "rewrites": {
            "recipe": {"kind": "rewrites", "into": ["paraphrase", "decontextualise", "decompose"]},
            "data": judged,
            "filters": [one for one in short if one != "leakage"],  # its rows are questions of people
        },
        "e5": {"recipe": {"kind": "e5", "tasks": 4}, "filters": unfound},  # its passages are in no corpus
        "reasonir": {"recipe": {"kind": "reasonir"}, **about, "filters": long},
    }


def measure(name: str, values: Mapping[str, Any], out: Path, limit: int, chosen: str) -> dict[str, Any]:
    own = {"kind": "synthesis_rates:writer", "options": {"settings": chosen}}
    sampling = {"temperature": 0.7, "top_p": 0.95}
    filled = {**values, "out": out / name, "limit": limit, "writer": own, "sampling": sampling}
    settings = validate(SynthesisSettings, filled, name)
    synthesis_rates.writer(chosen)  # as the config names it, which is not this module where this is run as a script
    began = time.process_time()
    show = Progressing(lambda _: nullcontext(lambda *_: None), lambda _: nullcontext())
    record = run_synthesis(settings, True, False, show)
    rows = [row for _, row in read_jsonl(SynthesisLayout(out / name).rows)]
    ranks = [row["made"]["seed_rank"] for row in rows if "seed_rank" in row["made"]]
    return {"name": name, "limit": limit, "cpu_s": round(time.process_time() - began, 1), "seed_ranks": ranks, **record}


def lines_of(one: Mapping[str, Any]) -> list[str]:
    """A recipe in words: what came of its units, and why the rest did not."""
    cost, units, written = one["cost"], one["units"]["written_about"], one["written"]
    seconds, each = one["cpu_s"], one["cpu_s"] / max(written, 1)
    failed = {r["reason"]: r["count"] for r in one["rejects"] if r["by"] == "writing"}
    passed = [f"{name} {part['out']}/{part['in']}" for name, part in one["filters"].items()]
    found = [
        f"{one['name']}: {units} units, {cost['asked']} requests, {written} rows written, {one['kept']} kept",
        f"  {seconds:.0f} s of CPU, {each:.1f} a row; {cost['prompt_tokens']:,} tokens read,"
        f" {cost['tokens']:,} written, {cost['tokens'] / max(seconds, 0.1):.0f} a second",
        f"  kept by filter: {', '.join(passed) or 'none asked'}",
        f"  not readable: {', '.join(f'{why} {count}' for why, count in failed.items()) or 'nothing'}",
    ]
    if ranks := one["seed_ranks"]:
        other = sum(rank > 1 for rank in ranks)
        mean = sum(ranks) / len(ranks)
        found.append(f"  not the seed is the positive in {other} of {len(ranks)}; mean rank of the seed {mean:.1f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writer", default="smollm2", help="A model, or a server's http://host/v1.")
    parser.add_argument("--backend", default="auto", help="Of a model: vllm, transformers, auto.")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis_rates"))
    parser.add_argument("--table", action="store_true", help="Print what is known, write nothing.")
    given = parser.parse_args()
    server = given.writer.startswith("http")
    policy = {"model": given.writer, "backend": given.backend, "vllm": {"max_tokens": 6144}}
    chosen = json.dumps(given.writer if server else {"kind": "policy", "policy": policy})
    results = given.out / "results.jsonl"
    known = [row for _, row in read_jsonl(results)] if results.exists() else []
    done = {(one["name"], one["limit"]) for one in known}
    limits = {name: int(count or given.limit) for name, _, count in (one.partition("=") for one in given.only)}
    for name, values in recipes(given.out).items():
        limit = limits.get(name, given.limit)
        if given.table or (limits and name not in limits) or (name, limit) in done:
            continue
        known.append(measure(name, values, given.out, limit, chosen))
        with open_for_append(results) as file:
            file.write(json.dumps(known[-1]) + "\n")
    print("\n".join(line for one in known for line in lines_of(one)))


if __name__ == "__main__":
    main()
