"""Streams pieces of work through a pool of actors with Ray Data, which repeats the work of dead actors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from agent.cluster.interface import ClusterError
from sleuth.errors import SleuthError, last_line

Made = TypeVar("Made")
"""The result of a piece: anything that can be pickled."""
Work = Callable[[range], Made]


def work_on_pieces(
    pieces: Sequence[range], build: Callable[[], Work[Made]], *, actors: int, cpus: float, gpus: float
) -> Iterator[Made]:
    """The result of each piece, in order, computed by ``actors`` actors of the running Ray.

    ``build`` is sent to every actor and returns the function that works there. A result waits only for the pieces
    before it, and pieces are started as results are read, so that few are in memory. Raises the SleuthError that
    ``build`` or its function raised, ClusterError for any other failure.
    """
    import ray

    if not pieces:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = ray.data.from_items([{"start": p.start, "stop": p.stop} for p in pieces], override_num_blocks=len(pieces))
    made = items.map_batches(
        _Pieces,
        fn_constructor_args=(build,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for answers in made.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for answer in answers["answer"]:
                made_of_piece, raised = pickle.loads(answer)
                if raised is not None:
                    raise raised
                yield made_of_piece
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"a worker failed: {last_line(error)}", "the same command goes on from what is done"
        ) from error


class _Pieces:
    """Runs in an actor: builds the function once, and returns the user's errors as they are."""

    def __init__(self, build: Callable[[], Work[Any]]) -> None:
        self._build = build
        self._work: Work[Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pieces = zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        return {"answer": [pickle.dumps(self._answer(range(start, stop))) for start, stop in pieces]}

    def _answer(self, piece: range) -> tuple[Any, SleuthError | None]:
        try:
            if self._work is None:
                self._work = self._build()
            return self._work(piece), None
        except SleuthError as error:
            return None, error
