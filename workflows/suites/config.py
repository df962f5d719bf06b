"""What a suite is: a mapping that anyone can write, in YAML or as one of the literals below. Imports without torch.

title: my suite
sets:
  nq: {files: [data/nq/test.jsonl, "hf://RUC-NLPIR/FlashRAG_datasets/nq/test"], limit: 500}
  hard: {files: [data/dev.jsonl], where: {kind: [bridge, 4hop1]}, by: [pack, kind]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sleuth.errors import ConfigError, did_you_mean
from sleuth.settings import Count, Settings, apply_override, read_layers, validate

PREFIX = "suite."
"""Overrides that begin so are of the suite: ``--set suite.sets.nq.limit=100``."""
FLASHRAG = "hf://RUC-NLPIR/FlashRAG_datasets"
_MULTI_HOP = ["2hop", "3hop1", "3hop2", "4hop1", "4hop2", "4hop3", "bridge", "comparison"]
_MULTI_HOP += ["compositional", "inference", "bridge_comparison"]
_WIKI = "set SLEUTH_DATA to the folder that holds wiki/ and hotpotqa/"


class SetSettings(Settings):
    """One set of a suite.

    ``files``: where its questions are looked for: paths, or datasets of the hub; the first that is there is taken.
    ``where`` keeps rows by their fields, or those of their ``metadata``. ``limit`` takes that many by the suite's
    seed; a smaller limit takes a part of what a larger one takes. ``by``: fields by whose values EM is told apart.
    ``group`` stands above the column ``title`` in the table. ``get``: what to do where none of the files is there.
    """

    files: Annotated[list[str], Field(min_length=1)]
    where: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    limit: Count | None = None
    by: list[str] = Field(default_factory=list)
    title: str = ""
    group: str = ""
    get: str = ""


class SuiteSettings(Settings):
    """Sets in the order of the table's columns. ``seed`` draws the questions of those with a limit."""

    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    sets: Annotated[dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], SetSettings], Field(min_length=1)]


def _flashrag(name: str, split: str, title: str, group: str) -> dict[str, Any]:
    files = [f"${{SLEUTH_DATA:-data}}/{name}/{split}.jsonl", f"data/{name}/{split}.jsonl", f"{FLASHRAG}/{name}/{split}"]
    return {"files": files, "title": title, "group": group, "get": "get them: sleuth download --suite search_r1"}


SUITES: dict[str, dict[str, Any]] = {
    "search_r1": {  # the table of Jin et al. 2025 (arXiv 2503.09516): its sets, their splits and their order
        "title": "Search-R1's seven sets",
        "sets": {
            "nq": _flashrag("nq", "test", "NQ", "General QA"),
            "triviaqa": _flashrag("triviaqa", "test", "TriviaQA", "General QA"),
            "popqa": _flashrag("popqa", "test", "PopQA", "General QA"),
            "hotpotqa": _flashrag("hotpotqa", "dev", "HotpotQA", "Multi-Hop QA"),
            "2wikimultihopqa": _flashrag("2wikimultihopqa", "dev", "2Wiki", "Multi-Hop QA"),
            "musique": _flashrag("musique", "dev", "MuSiQue", "Multi-Hop QA"),
            "bamboogle": _flashrag("bamboogle", "test", "Bamboogle", "Multi-Hop QA"),
        },
    },
    "wiki": {
        "title": "One pool of Wikipedia passages: all multi-hop dev questions and 353 of the others",
        "sets": {
            "multi-hop": {
                "files": ["${SLEUTH_DATA:-data}/wiki/qa/dev.jsonl"],
                "where": {"kind": _MULTI_HOP},
                "by": ["pack", "kind"],
                "title": "multi-hop",
                "group": "the pool's dev",
                "get": _WIKI,
            },
            "single-hop": {
                "files": ["${SLEUTH_DATA:-data}/wiki/qa/dev.jsonl"],
                "where": {"kind": ["single", "nq-annotated", "nq-distant"]},
                "limit": 353,
                "by": ["pack", "kind"],
                "title": "single-hop",
                "group": "the pool's dev",
                "get": _WIKI,
            },
            "hotpotqa": {
                "files": ["${SLEUTH_DATA:-data}/hotpotqa/qa/dev.jsonl"],
                "by": ["type"],
                "title": "HotpotQA",
                "group": "the first pack's dev",
                "get": _WIKI,
            },
        },
    },
}


def load_suite(name: str, overrides: Sequence[str] = ()) -> SuiteSettings:
    """The suite called ``name``, or the one in the YAML file ``name``, under overrides of its own settings.

    A set that is overridden by null is left out. Raises ConfigError.
    """
    if name.endswith((".yaml", ".yml")):
        values = read_layers(Path(name))
    elif name in SUITES:
        values = _copied(SUITES[name])
    else:
        raise ConfigError(f"there is no suite '{name}'", f"{did_you_mean(name, SUITES)} or give a YAML file")
    for override in overrides:
        apply_override(values, override)
    if isinstance(sets := values.get("sets"), Mapping):
        values["sets"] = {name: one for name, one in sets.items() if one is not None}
    return validate(SuiteSettings, values, f"suite {name}")


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the suite, without their prefix, and those of the run."""
    of_suite = [override.removeprefix(PREFIX) for override in overrides if override.startswith(PREFIX)]
    return of_suite, [override for override in overrides if not override.startswith(PREFIX)]


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}
