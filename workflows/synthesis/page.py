"""A page to read what was written: counts, then rows that were kept and rows that were not, with the reasons.

All of it is text of models and corpora: everything is escaped, and the page may neither run nor load anything.
"""

from __future__ import annotations

import html
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sleuth.seeding import derive_seed
from sleuth.settings import to_yaml
from sleuth.trajectories import read_jsonl
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.layout import SynthesisLayout

KEPT, OF_EACH_REASON = 40, 5
"""Rows that are shown."""
_CHARACTERS = 1200
"""Of a text; the rest is in the files beside the page."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
article { border-top: 1px solid #8885; padding: .8rem 0; } .query { font-weight: 600; }
p { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; } .small { opacity: .7; font-size: .85em; }
.good { border-left: 3px solid #3a7; padding-left: .6rem; } .bad { border-left: 3px solid #c54; padding-left: .6rem; }
pre { overflow-x: auto; }
"""


def make_page(layout: SynthesisLayout, record: Mapping[str, Any], settings: SynthesisSettings) -> str:
    """The page, from the files that a finished run has; which rows are shown is drawn by the run's seed."""
    kept = _drawn((row for _, row in read_jsonl(layout.rows)), KEPT, settings.seed)
    body = [
        f"<h1>Written rows: {_text(settings.out.name)}</h1>",
        _summary(record),
        _filters(record),
        f"<h2>Kept: {len(kept)} of {record['kept']:,}</h2>",
        *(_kept(row) for row in kept),
        "<h2>Not kept</h2>",
        *_rejected(layout, record, settings.seed),
        f"<h2>Settings</h2><pre>{_text(to_yaml(settings))}</pre>",
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    title = f"<title>{_text(settings.out.name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}{title}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _summary(record: Mapping[str, Any]) -> str:
    cost, units = record["cost"], record["units"]
    share = f" ({record['kept'] / record['written']:.0%} of what was written)" if record["written"] else ""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in units["left_out"].items())
    lines = {
        "writer": record["writer"],
        "recipe": record["recipe"],
        "written about": f"{units['written_about']:,} of {units['chosen']:,} chosen",
        "left out before": left_out or "nothing",
        "rows": f"{record['written']:,} written, {record['kept']:,} kept{share}",
        "requests": f"{cost['asked']:,}, {cost['failed']:,} failed, {cost['retried']:,} answers busy or broken",
        "tokens": f"{cost['prompt_tokens']:,} read, {cost['tokens']:,} written",
        **({"texts weighed": f"{cost['weighed']:,}, {cost['weighed_tokens']:,} tokens"} if cost["weighed"] else {}),
        "seconds": f"{record['seconds']:,}",
    }
    rows = (f"<tr><th>{_text(name)}</th><td>{_text(str(value))}</td></tr>" for name, value in lines.items())
    return f"<table>{''.join(rows)}</table>"


def _filters(record: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{_text(name)}</td><td class=n>{one['in']:,}</td><td class=n>{one['out']:,}</td></tr>"
        for name, one in record["filters"].items()
    ]
    reasons = [
        f"<tr><td>{_text(one['by'])}</td><td>{_text(one['reason'])}</td><td class=n>{one['count']:,}</td></tr>"
        for one in record["rejects"]
    ]
    heads = "<tr><th>filter</th><th>came</th><th>passed</th></tr>", "<tr><th>by</th><th>reason</th><th>rows</th></tr>"
    return f"<h2>Filters</h2><table>{heads[0]}{''.join(rows)}</table><table>{heads[1]}{''.join(reasons)}</table>"


def _kept(row: Mapping[str, Any], note: str = "") -> str:
    made = ", ".join(f"{name}: {value}" for name, value in (row.get("made") or {}).items())
    parts = [
        f"<p class=small>{_text(note)}</p>" if note else "",
        f"<p class=small>{_text(row['instruction'])}</p>" if row.get("instruction") else "",
        f"<p class=query>{_text(row['query'])}</p>",
        *(_passage(passage, "good") for passage in row["positive_passages"]),
        *(_passage(passage, "bad") for passage in row["negative_passages"]),
        f"<p class=small>{_text(made)}</p>" if made else "",
    ]
    return f"<article>{''.join(parts)}</article>"


def _rejected(layout: SynthesisLayout, record: Mapping[str, Any], seed: int) -> Iterator[str]:
    for one in record["rejects"]:
        same = (
            reject
            for _, reject in read_jsonl(layout.rejects)
            if (reject["by"], reject["reason"]) == (one["by"], one["reason"])
        )
        shown = _drawn(same, OF_EACH_REASON, seed)
        yield f"<h3>{_text(one['by'])}: {_text(one['reason'])} ({one['count']:,})</h3>"
        for reject in shown:
            if "row" in reject:
                yield _kept(reject["row"])
            else:
                text = _text(reject.get("text", ""))
                yield f"<article><p class=small>{_text(reject['id'])}</p><p>{text}</p></article>"


def _passage(passage: Mapping[str, Any], kind: str) -> str:
    title = f"<b>{_text(passage.get('title') or '')}</b> " if passage.get("title") else ""
    return f"<p class={kind}>{title}{_text(passage['text'])}</p>"


def _text(text: str) -> str:
    cut = text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …"
    return html.escape(cut)


def _drawn(rows: Iterable[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """``count`` of the rows, each as likely as another, in their order; they are read as a stream."""
    rng = random.Random(derive_seed(seed, "page"))
    chosen: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in enumerate(rows):
        if len(chosen) < count:
            chosen.append((number, row))
        elif (place := rng.randrange(number + 1)) < count:
            chosen[place] = (number, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])]
