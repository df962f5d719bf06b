"""Settings of a cluster: roles, placement, staleness of rollouts, timeouts. No torch, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sleuth.settings import Count, Seconds, Settings


class RoleSettings(Settings):
    """Resources of one actor of a role, in Ray's logical units."""

    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    gpus: Annotated[float, Field(ge=0.0)] = 0.0


class ClusterSettings(Settings):
    """Roles as actors: ``workers`` play episodes, ``retrievers`` share indexes, ``learners`` take optimizer steps.

    ``index_shards`` above 1 spreads the vectors of a flat dense index over so many actors, whose best hits are merged.
    ``backend`` ``local`` runs every role in threads of one process, without Ray. ``address`` is that of a running
    Ray (``auto``, ``host:port``); without one, a local Ray is started for the run.
    ``learners`` 0 trains in the controller itself; more are processes of Ray Train.

    ``schedule`` ``async`` plays the next rollouts during the update: a rollout is then sampled by a policy at most
    ``max_staleness`` rollouts older than the one being trained, and its tokens are weighted by truncated importance
    ratios (``grpo.importance_cap``).

    A dead worker's shard of questions is played elsewhere, at most ``retries`` times; one that takes longer than
    ``deadline_s`` is sent once more, and ends unscored if that takes as long again.
    ``retriever_timeout_s`` None: 60, and 900 where a reranker reads every pair.
    """

    backend: Literal["ray", "local"] = "ray"
    address: str | None = None
    workers: Count = 1
    retrievers: Count = 1
    index_shards: Count = 1
    learners: Annotated[int, Field(ge=0)] = 0
    worker: RoleSettings = RoleSettings()
    retriever: RoleSettings = RoleSettings()
    learner: RoleSettings = RoleSettings()
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    threads: Count | None = None
    schedule: Literal["sync", "async"] = "sync"
    max_staleness: Count = 1
    deadline_s: Seconds = 600.0
    start_timeout_s: Seconds = 300.0
    retriever_timeout_s: Seconds | None = None
    retries: Annotated[int, Field(ge=0)] = 3
    restarts: Annotated[int, Field(ge=0)] = 3
    object_store_mb: Annotated[int, Field(ge=80)] | None = None
    token: Path | None = None

    @model_validator(mode="after")
    def _fits(self) -> ClusterSettings:
        if self.backend == "local" and (self.address or self.learners):
            raise ValueError("backend local supports neither address nor learners: use backend ray")
        return self


MAY_DIFFER = tuple(
    f"cluster.{name}" for name in ClusterSettings.model_fields if name not in ("schedule", "max_staleness", "learners")
)
"""Settings that may change when a run is resumed, as they do not affect results."""
