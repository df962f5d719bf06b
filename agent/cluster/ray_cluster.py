"""A cluster on Ray. ``ray`` is imported here and in ``ray_learners.py`` only.

Every actor is a ``_Host`` that makes its object at the first call and returns errors as they are, so that a user's
errors stay one line and are distinguished from the death of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import secrets
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agent.cluster.config import ClusterSettings
from agent.cluster.interface import ClusterError, Needs, WorkerLostError
from agent.cluster.signals import fault_handlers_kept
from sleuth.errors import MissingExtraError, first_line

log = logging.getLogger("sleuth.cluster")
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_agent_register_timeout_ms": "120000",
}
HEARTBEATS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of head and nodes: a lost node is noticed after seconds instead of a minute."""
NAMESPACE = "sleuth"
_STARTS = 2


def cluster_environment(token: Path) -> dict[str, str]:
    """Environment variables that head, nodes and driver must share."""
    return {**QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def write_token(path: Path) -> Path:
    """Create the cluster's secret token, unless it exists; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    return path


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Ray gives its own processes a fixed 30 s to start; a busy machine needs more."""
    from ray._private import services

    asked, deadline = services.get_node, time.monotonic() + seconds

    def get_node(*args: Any) -> Any:
        while True:
            try:
                return asked(*args)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = asked


def _read_environment_again() -> None:
    """Ray reads the token's path once per process; here several runs or tests may follow each other."""
    with contextlib.suppress(ImportError, AttributeError):
        raylet = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "cluster.backend 'ray'")


class RayCluster:
    """Joins the Ray at ``settings.address``, or starts a local one that ends with this object.

    ``roles`` are reserved together before anything starts; each is (name of the role, CPUs, GPUs) and actors take
    the reservations of their role in order; ``room`` CPUs are for learners. Raises ClusterError if they do not fit.
    """

    def __init__(
        self, settings: ClusterSettings, roles: Sequence[tuple[str, float, float]], token: Path, room: float = 0.0
    ) -> None:
        require_ray()
        os.environ.update(cluster_environment(write_token(settings.token or token).resolve()))
        import ray

        _read_environment_again()
        self._settings = settings
        self._start(ray, sum(cpus for _, cpus, _ in roles) + room)
        self._closed = False
        try:
            self._group = self._reserve(ray, [(cpus, gpus) for _, cpus, gpus in roles]) if roles else None
        except BaseException:
            self.close()
            raise
        self._free: dict[str, list[int]] = {}
        for bundle, (role, _, _) in enumerate(roles):
            self._free.setdefault(role, []).append(bundle)

    def spawn(self, name: str, build: Callable[[], object], needs: Needs) -> RayActor:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # Named, so that an actor passed to another is found again after the other restarts.
        known_as = f"{name} {uuid.uuid4().hex}"
        host = ray.remote(_Host).options(
            name=known_as,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_restarts=needs.restarts,
            max_task_retries=0,
            max_concurrency=needs.concurrency,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._free[needs.role].pop(0)
            )
            if self._free.get(needs.role)
            else "DEFAULT",
        )
        return RayActor(name, known_as, host.remote(name, build))

    def put(self, value: Any) -> Any:
        import ray

        try:
            return ray.put(value)
        except ray.exceptions.ObjectStoreFullError as error:
            raise ClusterError(
                "the object store is full: it holds all versions of the weights in use",
                "raise cluster.object_store_mb (and /dev/shm), train an adapter, or lower cluster.max_staleness",
            ) from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            import ray

            with _uninterrupted(), fault_handlers_kept():
                ray.shutdown()

    def _start(self, ray: Any, cpus: float) -> None:
        settings = self._settings
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}
        if settings.address is None:
            # Logical CPUs: enough for every role, however few this machine has.
            options |= {"num_cpus": max(int(-(-cpus // 1)), os.cpu_count() or 1), "include_dashboard": False}
            if settings.object_store_mb:
                options["object_store_memory"] = settings.object_store_mb * 2**20
        where = settings.address or "this machine"
        for attempt in range(1, _STARTS + 1):
            try:
                with _patience(settings.start_timeout_s), fault_handlers_kept():
                    ray.init(address=settings.address or "local", **options)
                return
            except Exception as error:
                with fault_handlers_kept():
                    ray.shutdown()
                if attempt == _STARTS or settings.address:
                    raise ClusterError(
                        f"no Ray at {where}: {first_line(error)}",
                        "start one with: sleuth cluster CONFIG --head (secret: cluster.token), or leave cluster out",
                    ) from error
                log.warning("Ray did not start (%s): trying again", first_line(error))

    def _reserve(self, ray: Any, bundles: Sequence[tuple[float, float]]) -> Any:
        from ray.util.placement_group import placement_group

        wanted = [{"CPU": max(cpus, 0.001), **({"GPU": gpus} if gpus else {})} for cpus, gpus in bundles]
        group = placement_group(wanted, strategy=self._settings.placement)
        if not group.wait(self._settings.start_timeout_s):
            total = {name: sum(b.get(name, 0) for b in wanted) for name in ("CPU", "GPU")}
            have = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ClusterError(
                f"the cluster has no room: {total} wanted by {len(wanted)} actors ({self._settings.placement}),"
                f" {have} there",
                "add nodes, or lower cluster.workers or what a role takes",
            )
        return group


def ask_every_node(report: Callable[[], Mapping[str, str]]) -> list[str]:
    """The result of ``report`` on each node of the cluster, one line each.

    Raises ClusterError naming the nodes whose results differ from the first one's.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        ray.remote(_report_on).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        for node in nodes
    ]
    said = ray.get([task.remote(report) for task in asked], timeout=120)
    lines = []
    for node, answer in zip(nodes, said, strict=True):
        room = ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        lines.append(f"{node['NodeManagerAddress']}  {room}  " + "  ".join(f"{k} {v}" for k, v in answer.items()))
    odd = [line for line, answer in zip(lines, said, strict=True) if answer != said[0]]
    if odd:
        raise ClusterError(
            f"nodes differ: {lines[0]} | {' | '.join(odd)}",
            "install the same commit on every node, and put the run folder on shared storage",
        )
    return lines


def _report_on(report: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    return dict(report())


class RayActor:
    """Picklable, so that an actor can be passed to another, which finds it by name."""

    def __init__(self, name: str, known_as: str, handle: Any = None) -> None:
        self._name = name
        self._known_as = known_as
        self._found = handle

    def __reduce__(self) -> tuple[Any, ...]:
        return RayActor, (self._name, self._known_as)

    @property
    def _handle(self) -> Any:
        if self._found is None:
            import ray

            self._found = ray.get_actor(self._known_as, namespace=NAMESPACE)
        return self._found

    @property
    def name(self) -> str:
        return self._name

    def call(self, method: str, *args: Any) -> Future[Any]:
        heard: Future[Any] = Future()
        heard.set_running_or_notify_cancel()
        try:
            answer = self._handle.invoke.remote(method, *args).future()
        except Exception as error:  # noqa: BLE001 - a handle of a dead actor may raise at once
            heard.set_exception(self._translated(error))
            return heard
        answer.add_done_callback(lambda done: self._hear(heard, done))
        return heard

    def kill(self) -> None:
        import ray

        ray.kill(self._handle, no_restart=False)

    def _hear(self, heard: Future[Any], done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            heard.set_exception(self._translated(error))
            return
        value, raised = done.result()
        if raised is not None:
            heard.set_exception(raised)
        else:
            heard.set_result(value)

    def _translated(self, error: BaseException) -> BaseException:
        from ray import exceptions

        lost = exceptions.ObjectLostError | exceptions.OwnerDiedError | exceptions.NodeDiedError
        if isinstance(error, exceptions.ActorUnavailableError | lost):
            return WorkerLostError(self._name, first_line(error), for_good=False)
        if isinstance(error, exceptions.ActorDiedError):
            return WorkerLostError(self._name, first_line(error), for_good=True)
        if isinstance(error, exceptions.OutOfMemoryError):
            return WorkerLostError(self._name, "its node ran out of memory", for_good=False)
        return error


class _Host:
    """Runs in the actor's process."""

    def __init__(self, name: str, build: Callable[[], object]) -> None:
        self._name = name
        self._build = build
        self._made: object | None = None
        self._making = threading.Lock()

    def invoke(self, method: str, *args: Any) -> tuple[Any, BaseException | None]:
        try:
            with self._making:
                if self._made is None:
                    self._made = self._build()
            return getattr(self._made, method)(*args), None
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is read
            return None, _portable(error)


def _portable(error: Exception) -> BaseException:
    """The error itself if it can be pickled, else its message."""
    import pickle

    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if str(copied) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def environment_lines(variables: Mapping[str, str]) -> list[str]:
    """Shell lines that set ``variables``."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
