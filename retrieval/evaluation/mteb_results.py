"""Figures in the layout of mteb's result files, which its ``ResultCache`` and leaderboard read.

FOLDER/results/MODEL/REVISION/TASK.json      a TaskResult: scores by split
FOLDER/results/MODEL/REVISION/model_meta.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleuth.artifacts import atomic_write

CUTS = (1, 3, 5, 10, 20, 100, 1000)
_MEASURES = {"nDCG": "ndcg", "AP": "map", "R": "recall", "P": "precision", "RR": "mrr", "Success": "hit_rate"}

TASKS: Mapping[str, str] = {
    "msmarco": "MSMARCO",
    "trec-covid": "TRECCOVID",
    "nfcorpus": "NFCorpus",
    "nq": "NQ",
    "hotpotqa": "HotpotQA",
    "fiqa": "FiQA2018",
    "arguana": "ArguAna",
    "webis-touche2020": "Touche2020",
    "quora": "QuoraRetrieval",
    "dbpedia-entity": "DBPedia",
    "scidocs": "SCIDOCS",
    "fever": "FEVER",
    "climate-fever": "ClimateFEVER",
    "scifact": "SciFact",
}
"""What mteb calls BEIR's sets."""

_LOCAL = "local"
"""The revision of data that are files of the user's."""


def mteb_measures() -> list[str]:
    """The measures of mteb's retrieval tasks, by the names of ir_measures."""
    return [f"{name}@{k}" for name in _MEASURES for k in CUTS]


def task_name(name: str) -> str:
    """What mteb calls the set ``name``; a set that it does not know keeps its name."""
    if not name.startswith("bright-"):
        return TASKS.get(name, name)
    domain, long = name.removeprefix("bright-").removesuffix("-long"), name.endswith("-long")
    words = "".join({"theoremqa": "TheoremQA"}.get(word, word.capitalize()) for word in domain.split("_"))
    return f"Bright{words}{'Long' if long else ''}Retrieval"


def task_result(name: str, split: str, means: Mapping[str, float]) -> dict[str, Any]:
    """A TaskResult for the set ``name``; ``means`` has the measures of `mteb_measures` that were worked out."""
    scores: dict[str, Any] = {}
    for measure, value in means.items():
        kind, _, cutoff = measure.partition("@")
        scores[f"{_MEASURES[kind]}_at_{cutoff}"] = round(value, 6)
    main = "recall_at_1" if name.startswith("bright-") and name.endswith("-long") else "ndcg_at_10"
    entry = {**scores, "main_score": scores.get(main, 0.0), "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "dataset_revision": _LOCAL,
        "task_name": task_name(name),
        "mteb_version": None,
        "scores": {split: [entry]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }


def write_mteb_results(
    folder: str | Path, model: str, revision: str, sets: Mapping[str, tuple[str, Mapping[str, float]]]
) -> Path:
    """Write a file for each of ``sets``, (split, measures) by name; returns their folder.

    ``model``: ``owner/name``, or a name of ours.
    """
    model = mteb_model_name(model)
    place = Path(folder) / "results" / model.replace("/", "__").replace(" ", "_") / revision
    for name, (split, means) in sets.items():
        result = task_result(name, split, means)
        atomic_write(place / f"{result['task_name']}.json", json.dumps(result, indent=2) + "\n")
    atomic_write(place / "model_meta.json", json.dumps(_model_meta(model, revision), indent=2) + "\n")
    return place


def _model_meta(model: str, revision: str) -> dict[str, Any]:
    """A ModelMeta that says no more than is known."""
    unknown = (
        *("loader", "release_date", "languages", "n_parameters", "memory_usage_mb", "max_tokens", "embed_dim"),
        *("license", "open_weights", "public_training_code", "public_training_data", "similarity_fn_name"),
        *("use_instructions", "training_datasets"),
    )
    return {"name": model, "revision": revision, "framework": [], **dict.fromkeys(unknown)}


def mteb_model_name(model: str) -> str:
    """``model`` as mteb wants it, ``owner/name``."""
    words = re.sub(r"[^\w.-]+", "-", model).strip("-.")
    return (
        model if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and model.count("/") == 1 else f"sleuth/{words or 'retriever'}"
    )
