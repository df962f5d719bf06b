"""The model card of an exported policy: what it is, how it was made, what was measured, how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.artifacts import versions
from sleuth.layout import GrpoOutcome, RunLayout, read_record
from sleuth.sinks import read_metrics
from sleuth.statistics import explained, methods_of

if TYPE_CHECKING:
    from workflows.config import RunSettings

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [sleuth, search-agent, question-answering]{base}
---
# A policy that searches

It thinks, writes a search query, reads the passages that come back, and answers. Made with Sleuth from the run
`{run}`.

## How it was made

{facts}

## What was measured

Greedy answers; exact match (EM) and F1 as in HotpotQA's script.{intervals}
Questions: `{data}`.

{figures}

{curve}

The figures apply only to these questions, this retriever and this corpus.

## Use

With Sleuth, which keeps the prompt, the budgets and the grammar of `sleuth.json`:

```
sleuth chat FOLDER --retriever INDEX
sleuth evaluate FOLDER --data QUESTIONS --retriever INDEX
```

With transformers, one turn; you supply the search engine and the loop around it:

```python
import json
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
protocol = json.load(open(f"{{folder}}/sleuth.json"))
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = protocol["prompt"].replace("{{question}}", "Who directed the film?")
inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
turn = model.generate(
    inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens=protocol["environment"]["turn_tokens"],
    do_sample=False,
    stop_strings=protocol["stop"],
    tokenizer=tokenizer,
)
print(tokenizer.decode(turn[0]))
```

{results}
"""
_RESULTS = {
    False: """Neutralise every protocol tag in the passages between `<information>` and `</information>`, or a passage \
could end the
block and speak for the policy.""",
    True: """A turn of calls has no stop string: it ends with the message. What a call returns stands between the two \
texts of
`protocol["results"]` and goes after the turn, without the end-of-message token that the turn has sampled already.
Neutralise every tag and special token in it, or a passage could end the message and speak for the policy.""",
}
"""Whether results are messages of their own -> how to give them back."""


def model_card(run: Path, settings: RunSettings, protocol: Mapping[str, Any]) -> str:
    """README.md of the export of ``run``. ``protocol`` is the content of ``sleuth.json``."""
    model = settings.policy.model
    hub = model if model and model.count("/") == 1 and not Path(model).exists() else None
    rows = _rows(run)
    said = explained("95 % intervals", map(methods_of, rows.values()))
    text = _CARD.format(
        base=f"\nbase_model: {hub}" if hub else "",
        run=run.resolve().name,
        facts="\n".join(f"- {name}: {_inline(value)}" for name, value in _facts(settings)),
        data=Path(settings.data.test or settings.data.dev or "none").name,
        intervals=f" {said}." if said else "",
        figures=_table(rows),
        curve=_curve(run),
        results=_RESULTS["results" in protocol],
    )
    return text if "prompt" in protocol else text[: text.index("With transformers")].rstrip() + "\n"


def _facts(settings: RunSettings) -> Iterator[tuple[str, str]]:
    policy = settings.policy
    yield "start", f"a tiny policy from scratch, {policy.tiny.layers} layers" if policy.tiny else str(policy.model)
    if settings.warmstart:
        yield "warm start", f"supervised on {'demonstrations' if settings.demonstrations else 'given trajectories'}"
    if settings.grpo:
        grpo = settings.grpo
        size = f"{grpo.questions} questions x {grpo.group_size} rollouts per step, learning rate {grpo.learning_rate:g}"
        yield "reinforcement", f"{grpo.algorithm or 'GRPO'}, {grpo.steps} steps, {size}, KL {grpo.beta:g}"
        yield "rewards", ", ".join(f"{r.weight:g} x {r.kind}" for r in settings.rewards)
    for name, stage in (("warm start", settings.warmstart), ("reinforcement", settings.grpo)):
        if stage:
            part = f"a low-rank adapter (r = {stage.lora.r}), merged here" if stage.lora else "all"
            yield f"weights trained by {name}", part
    environment = settings.environment
    budgets = f"{environment.searches} searches, {environment.turns} turns, {environment.total_tokens} tokens"
    tools = ", ".join(tool.kind for tool in environment.tools)
    yield "environment", f"{environment.kind}, preset {environment.preset}, at most {budgets}"
    yield "protocol", f"{environment.protocol}, with {tools}"
    if environment.prompts:
        own = ", ".join(environment.prompts.model_dump())
        yield "prompts", f"of the run's own: {own}; the others are the preset's. sleuth.json has the texts"
    yield "retriever", f"{settings.retriever.kind}, top {environment.top_k}" if settings.retriever else "none"
    yield "seed", str(settings.seed)
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())


def _rows(run: Path) -> dict[str, Mapping[str, Any]]:
    """The metrics of every evaluation that ended, by name, oldest first."""
    ended = [evaluation for evaluation in RunLayout(run).evaluations() if evaluation.metrics.exists()]
    ended.sort(key=lambda evaluation: evaluation.metrics.stat().st_mtime)
    return {evaluation.folder.name: read_record(evaluation.metrics) or {} for evaluation in ended}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| policy | questions | EM [95 %] | F1 [95 %] | searches | answered |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = [_inline(name), _count(row), _sure(row, "em"), _sure(row, "f1")]
        cells += [_short(row.get("searches")), _short(row.get("answered"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "No evaluation was run."


def _count(row: Mapping[str, Any]) -> str:
    return f"{row['n']}" if not row.get("unscored") else f"{row['scored']} of {row['n']} could be scored"


def _sure(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_interval") or (None, None)
    return f"{_short(row.get(name))} [{_short(low)}, {_short(high)}]"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _curve(run: Path) -> str:
    layout = RunLayout(run)
    path = layout.metrics
    dev = [(row["step"], row["dev/em"]) for row in read_metrics(path) if "dev/em" in row] if path.exists() else []
    if not dev:
        return ""
    best = GrpoOutcome.read(layout.grpo)
    if best is None:
        return ""
    first = f"EM on the dev questions was {dev[0][1]:.3f} at step {dev[0][0]}"
    if best.best_em is None:
        return f"During GRPO, {first}; no later evaluation was complete, so these are the last weights."
    return f"During GRPO, {first} and {best.best_em:.3f} at step {best.best_step}; these are the weights of that step."


def _inline(text: str) -> str:
    """Text on one line that cannot end a table cell or a list item."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())
