"""Warm start: supervised fine-tuning on demonstration trajectories, on TRL's SFTTrainer.

Only policy tokens (here the demonstrator's) are learned; the prompt and the environment's tokens are masked by
source, not by searching the text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.codec import HFCodec
from agent.config import PolicySettings, WarmstartSettings
from agent.learning.callbacks import GradientGuard
from agent.learning.options import load_trained, on_one_device, optimizer_options, runtime_options
from agent.policies.adapters import peft_config
from hub.callbacks import CompletionMarker, LogToSink
from hub.context import context_length
from sleuth.artifacts import atomic_folder, write_manifest
from sleuth.checkpoints import drop_incomplete, newest_complete
from sleuth.errors import DataError
from sleuth.protocols import MetricSink
from sleuth.types import Trajectory

log = logging.getLogger("sleuth.warmstart")
_IGNORED = -100
_BUCKET = 4
"""Number of batches whose rows are sorted by length together."""


def to_example(trajectory: Trajectory, eos: int) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of equal length; a label is -100 unless it is a policy token.

    An EOS ends the row and is learned too: the policy must stop after its answer.
    """
    ids, mask = trajectory.token_ids, trajectory.policy_mask
    labels = [token if mine else _IGNORED for token, mine in zip(ids, mask, strict=True)]
    return {"input_ids": [*ids, eos], "labels": [*labels, eos]}


def make_examples(trajectories: Iterable[Trajectory], eos: int, max_tokens: int) -> list[dict[str, list[int]]]:
    """Examples of at most ``max_tokens``; longer ones are left out and counted in a warning.

    Raises DataError if none is left.
    """
    examples = [to_example(trajectory, eos) for trajectory in trajectories]
    kept = [example for example in examples if len(example["input_ids"]) <= max_tokens]
    if not kept:
        raise DataError(
            f"none of {len(examples)} demonstrations fits into {max_tokens} tokens", "raise warmstart.max_tokens"
        )
    if len(kept) < len(examples):
        log.warning(
            "%d of %d demonstrations are longer than %d tokens and left out",
            len(examples) - len(kept),
            len(examples),
            max_tokens,
        )
    return kept


def bucketed_order(lengths: Sequence[int], batch: int, steps: int, seed: int) -> list[int]:
    """Row positions for ``steps`` batches: rows of similar length share a batch, batches come in random order.

    Sorting longer stretches by length would put each one's shortest rows last, and a policy trained last on short
    demonstrations stops searching.
    """
    rng = np.random.default_rng(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        shuffled = rng.permutation(len(lengths)).tolist()
        for start in range(0, len(shuffled), batch * _BUCKET):
            stretch = sorted(shuffled[start : start + batch * _BUCKET], key=lambda row: lengths[row])
            batches += [stretch[i : i + batch] for i in range(0, len(stretch), batch)]
    whole = [rows for rows in batches if len(rows) == batch] or [np.resize(batches[0], batch).tolist()] * steps
    order = rng.permutation(len(whole)).tolist()
    picked = [whole[order[step % len(order)]] for step in range(steps)]
    return [row for rows in picked for row in rows]


def warm_start(
    settings: WarmstartSettings,
    policy: PolicySettings,
    model_name: str,
    trajectories: Sequence[Trajectory],
    out: Path,
    *,
    seed: int,
    sink: MetricSink,
    work: Path,
    resume: bool = False,
) -> Path:
    """Fine-tune the policy at ``model_name`` and save it to ``out``; its own adapter and a new one are merged into it.

    Checkpoints go to ``work``; ``resume`` continues from the newest complete one.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from agent.learning.masked import ReadHead

    model, codec = load_trained(policy, model_name, settings.lora)
    if settings.lora and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    longest = min(settings.max_tokens, context_length(model.config) or settings.max_tokens)
    examples = make_examples(trajectories, codec.eos_token_id, longest)
    micro = settings.micro_batch or settings.batch_size
    steps = settings.steps or max(round(settings.epochs * len(examples) / settings.batch_size), 1)
    order = bucketed_order([len(e["input_ids"]) for e in examples], settings.batch_size, steps, seed)
    args = SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        max_steps=steps,
        max_length=None,
        train_sampling_strategy="sequential",
        gradient_checkpointing=settings.gradient_checkpointing,
        save_steps=settings.save_steps,
        save_total_limit=2,
        seed=seed,
        **optimizer_options(settings),
        **runtime_options(policy, logging_steps=10),
    )
    trainer = SFTTrainer(
        model=model,
        args=on_one_device(args),
        train_dataset=Dataset.from_list([examples[row] for row in order]),
        processing_class=codec.tokenizer,
        peft_config=peft_config(settings.lora),
        callbacks=[LogToSink(sink), CompletionMarker(), GradientGuard("warmstart")],
    )
    ReadHead(trainer.model)
    trainer.remove_callback(PrinterCallback)
    drop_incomplete(work)
    found = newest_complete(work) if resume else None
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    return _save(trainer.model, codec, out, torch.float32 if policy.dtype == "float32" else None, model_name)


def _save(model: Any, codec: HFCodec, out: Path, dtype: Any, base: str) -> Path:
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    if dtype is not None:
        merged = merged.to(dtype)
    with atomic_folder(out, overwrite=True) as folder:
        merged.save_pretrained(folder)
        codec.save(folder)
        write_manifest(folder, "policy", {"warm_started_from": base})
    return out
