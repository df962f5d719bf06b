"""Suites of retrieval sets: one retriever, or one for each set, over domains, languages and modalities.

title: my suite
sets:
  towns: {folder: data/towns, split: dev}
  pages: {folder: runs/pages, split: dev}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sleuth.errors import ConfigError, DataError, did_you_mean
from sleuth.settings import Settings, read_layers, validate

if TYPE_CHECKING:
    from retrieval.evaluation.sets import RetrievalSet


class RankedSetSettings(Settings):
    """A set: a folder in BEIR's layout, whose passages may be texts, pages or both."""

    folder: str
    split: str = "test"


class RankingSuiteSettings(Settings):
    """Sets in the order of the table. ``measures``: reported of each, and as a mean over all."""

    title: str = ""
    measures: str = "nDCG@10 R@5"
    sets: Annotated[dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], RankedSetSettings], Field(min_length=1)]


def _dev(folder: str) -> dict[str, str]:
    return {"folder": f"${{SLEUTH_DATA:-data}}/{folder}", "split": "dev"}


RANKING_SUITES: Mapping[str, Mapping[str, Any]] = {
    "unified": {  # the axes of Tevatron 2.0 (Ma et al. 2025): domain, language, modality
        "title": "one retriever across domain, language and modality",
        "sets": {
            "wiki": _dev("wiki"),
            "medquad": _dev("medquad"),
            "scifact": _dev("scifact"),
            **{f"xquad-{code}": _dev(f"xquad/{code}") for code in ("en", "de", "ru", "ar", "hi", "zh")},
            "docs_pages": _dev("docs_pages"),
        },
    },
}


def load_ranking_suite(name: str) -> RankingSuiteSettings:
    """The suite called ``name``, or the one in the YAML file ``name``. Raises ConfigError."""
    if name.endswith((".yaml", ".yml")):
        values: Mapping[str, Any] = read_layers(Path(name))
    elif name in RANKING_SUITES:
        values = RANKING_SUITES[name]
    else:
        raise ConfigError(f"there is no suite '{name}'", f"{did_you_mean(name, RANKING_SUITES)} or give a YAML file")
    return validate(RankingSuiteSettings, dict(values), f"suite {name}")


def sets_of(suite: RankingSuiteSettings) -> list[RetrievalSet]:
    """The sets under their names in the suite. Raises DataError naming a folder that is not there."""
    from retrieval.evaluation.benchmarks import beir_set

    sets = []
    for name, one in suite.sets.items():
        if not Path(one.folder).is_dir():
            raise DataError(f"set {name} of the suite is not at {one.folder}", "SLEUTH_DATA names the data folder")
        sets.append(replace(beir_set(one.folder, one.split), name=name))
    return sets
