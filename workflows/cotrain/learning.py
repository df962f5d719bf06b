"""The second half of a round: the retriever learns, is indexed, compared and swapped in, and the agent goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from agent.cluster.config import ClusterSettings
from retrieval.combine.config import RerankSettings
from retrieval.dense.config import DenseSettings
from retrieval.encoders.index_config import EncodedIndexSettings
from retrieval.training.config import FrozenSettings, SourceSettings, TrainingSettings
from retrieval.training.start import Counting
from sleuth.layout import RunLayout, read_record
from sleuth.seeding import derive_seed
from workflows.config import RunSettings
from workflows.cotrain.context import Cotraining
from workflows.cotrain.families import learner_of, start_of, weights_of
from workflows.cotrain.guards import answer_recall, compared
from workflows.cotrain.rows import held_out_questions, refuse_held_out, refuse_held_out_queries
from workflows.play import played
from workflows.retriever_training import RetrieverRun, claimed, draw_curves_of

log = logging.getLogger("sleuth.cotrain")


def train_start(run: Cotraining, counting: Counting) -> None:
    """Train the first retriever as ``cotrain.start`` describes it."""
    start = run.chosen.start
    assert start is not None
    refuse_held_out_queries(start.data, held_out_questions(run))
    seed = start.seed if "seed" in start.model_fields_set else run.settings.seed
    own = {"out": run.layout.start.out, "seed": seed, "threads": start.threads or run.settings.threads}
    if start.encoder is not None and run.chosen.query_form != "query":
        changed = {**start.encoder.settings, "query_form": run.chosen.query_form}
        own["encoder"] = start.encoder.model_copy(update={"settings": changed})
    _train(RetrieverRun.model_validate({**dict(start), **own}), counting)


def train_retriever(run: Cotraining, number: int, counting: Counting) -> dict[str, Any]:
    """Train the retriever of the round before on this round's rows, and those of earlier rounds if they are kept."""
    rows = _rows_so_far(run, number)
    kept, learning = held_out_questions(run), run.chosen.retriever
    assert learning is not None
    refuse_held_out(rows, kept)
    refuse_held_out_queries(learning.rows, kept)
    if not rows:
        log.warning("round %d: no rollout was right and found its answer: the retriever learns nothing", number)
        return {"trained": False}
    figures = _train(retriever_settings(run, number, rows), counting)
    return {"trained": True, "rows": sum(_count(path) for path in rows), **figures}


def retriever_settings(run: Cotraining, number: int, rows: list[Path]) -> RetrieverRun:
    """The training of a round's retriever, as `sleuth train-retriever` would read it."""
    learning = run.chosen.retriever
    assert learning is not None
    learner = learner_of(run.retriever(number - 1), learning.reranker is not None)
    values: dict[str, Any] = {
        "out": run.layout.round(number).retriever.out,
        "seed": derive_seed(run.settings.seed, "retriever", number) % 2**31,
        "threads": run.settings.threads,
        "data": [*(SourceSettings(path=str(path), layout="tevatron") for path in rows), *learning.rows],
        "mining": learning.mining,
        "evaluation": learning.evaluation,
    }
    if learning.reranker is not None:
        reranker = learning.reranker.model_copy(update={"backbone": weights_of(learner)})
        return RetrieverRun.model_validate({**values, "kind": "reranker", "reranker": reranker})
    assert isinstance(learner, EncodedIndexSettings)
    training = _with_vectors(learning.training, learner)
    encoder = start_of(learner, run.chosen.query_form)
    return RetrieverRun.model_validate({**values, "encoder": encoder, "training": training})


def index_passages(run: Cotraining, number: int) -> dict[str, Any]:
    """Make the index of the trained retriever, or open the one whose passages stayed as they are.

    Raises ArtifactError if it does not fit the encoder.
    """
    retriever = run.open(run.candidate(number))
    return {"fingerprint": retriever.fingerprint}


def guard(run: Cotraining, number: int) -> dict[str, Any]:
    """Compare the new retriever with the one before on held-out searches; it is swapped in unless it is worse."""
    chosen = run.chosen.guards
    searches = [row.trajectory for row in played(run.layout.round(number - 1).evaluation("dev"))]
    before = answer_recall(run.open_after(number - 1), searches, chosen.k)
    after = answer_recall(run.open(run.candidate(number), run.info(number, "index")["fingerprint"]), searches, chosen.k)
    found = compared(before, after)
    swapped = found["n"] == 0 or found["difference"] >= -chosen.tolerance
    if found["n"] == 0:
        log.warning("round %d: no held-out search tells retrievers apart: the new one is swapped in unseen", number)
    else:
        figures = f"{found['after']:.3f} against {found['before']:.3f} on {found['n']} held-out questions"
        said = "is swapped in" if swapped else "is worse and is NOT swapped in: the agent keeps the one before"
        log.log(
            logging.INFO if swapped else logging.WARNING, "round %d: the new retriever %s (%s)", number, said, figures
        )
    return {"swapped": swapped, **found}


def train_agent(run: Cotraining, number: int) -> dict[str, Any]:
    """The agent goes on with the retriever as it is now: GRPO as a run of its own in the round's folder."""
    from workflows.stages import run_stages

    run.open_after(number)  # refuses another index than the one that was made
    run_stages(agent_settings(run, number), resume=True, overwrite=False)
    recorded = read_record(run.layout.round(number).agent.stage("grpo")) or {}
    return {name: value for name, value in recorded.items() if not isinstance(value, dict)}


def agent_settings(run: Cotraining, number: int) -> RunSettings:
    """The agent's run of a round: nothing but GRPO, from the policy of the round before.

    The gate is passed before the first round. A policy that is an adapter is trained on as it is, without a second one.
    """
    settings, policy = run.settings, run.policy(number - 1)
    assert settings.grpo is not None
    changes: dict[str, Any] = {"gate": None}
    if (Path(policy) / "adapter_config.json").is_file():
        changes["lora"] = None
    plain = {name: getattr(settings, name) for name in RunSettings.model_fields}
    return RunSettings.model_construct(**plain).model_copy(
        update={
            "out": run.layout.round(number).agent.out,
            "seed": derive_seed(settings.seed, "agent", number) % 2**31,
            "world": None,
            "policy": settings.policy.model_copy(update={"model": policy, "tiny": None}),
            "retriever": run.retriever(number),
            "demonstrations": None,
            "warmstart": None,
            "grpo": settings.grpo.model_copy(update=changes),
            "data": settings.data.model_copy(update={"repeats": "drop"}),
            "cluster": _cluster(settings),
            "evaluation": settings.evaluation.model_copy(update={"modes": [], "start_modes": []}),
        }
    )


def _cluster(settings: RunSettings) -> ClusterSettings | None:
    """The agent's run has another folder, and the secret of a running Ray lies beside that of the whole."""
    if settings.cluster is None:
        return None
    token = settings.cluster.token or RunLayout(settings.out).token
    return settings.cluster.model_copy(update={"token": token})


def _train(settings: RetrieverRun, counting: Counting) -> dict[str, Any]:
    from retrieval.training.stages import run_all, stage_runs

    with claimed(settings, True, False, counting) as training:
        records = run_all(training)
        for part in stage_runs(training):
            draw_curves_of(part)
    numbers = {name: value for record in records.values() for name, value in record.items()}
    return {name: value for name, value in numbers.items() if name != "seconds" and isinstance(value, int | float)}


def _rows_so_far(run: Cotraining, number: int) -> list[Path]:
    rounds = range(1, number + 1) if run.chosen.earlier_rows else [number]
    paths = [run.layout.round(one).rows for one in rounds]
    return [path for path in paths if path.exists() and path.stat().st_size]


def _count(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _with_vectors(training: TrainingSettings, learner: EncodedIndexSettings | RerankSettings) -> TrainingSettings:
    """``training`` with the vectors of the learner's index, where passages stay as they are and the index has them."""
    if not isinstance(training, FrozenSettings) or training.index is not None or not isinstance(learner, DenseSettings):
        return training
    from retrieval.encoders.indexes import read_encoded_manifest

    flat = read_encoded_manifest(learner.index_of(), learner.index)["index_type"] == "flat"
    return training.model_copy(update={"index": learner.index}) if flat else training
