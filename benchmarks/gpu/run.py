"""Runs what was carried to a machine with a GPU, stage by stage, and leaves small files to take home.

    python3 -m benchmarks.gpu.run [FOLDER_WITH_PIECES …] [--out RESULTS] [--work runs/gpu] [--minutes 25]
        [--call-minutes 9] [--only STAGE …] [--config CONFIG.yaml] [--set KEY=VALUE …] [--device cpu --small]

Pieces are checked, joined and unpacked into the work folder, wheels installed into a folder of their own beside what is
there (no network, no dependencies resolved). If pieces are missing, those that came are kept for the next call. Then
the stages run (see ``budget.py``), each in a process of its own and never for more than 8 minutes; --minutes is the
time of all calls together, --call-minutes that of this one. The same command goes on after an interruption: what is
done is not done again, and the run itself continues from its checkpoints. Exit status: 0 all is done, 1 a stage failed,
2 the command or the pieces are wrong, 3 time is up and something is left.

Only the standard library is used here, since nothing is installed yet.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from benchmarks.gpu import pieces
from benchmarks.gpu.budget import AT_ONCE, LEAST, MINUTES, SETUP, STAGES, Ledger, Stage, left
from benchmarks.gpu.results import bring_home
from benchmarks.gpu.work import Work
from sleuth.artifacts import atomic_folder
from sleuth.errors import ArtifactError, SleuthError, did_you_mean

ROOT = Path(__file__).parents[2]
DONE, FAILED, WRONG, LEFT = 0, 1, 2, 3
TIME_IS_UP = "its time was up"
_TICK = 0.5
GRACE = 20.0
"""Seconds that an interrupted stage has to end by itself."""
Command = Callable[[Stage, float], Sequence[str]]
"""Of a process of a stage, which has so many seconds in all, this process and later ones."""


def set_up(work: Work, places: Sequence[Path]) -> None:
    """Unpack the load and install its wheels, unless that was done. Raises ArtifactError."""
    for place in places:
        if not place.is_dir():
            raise ArtifactError(f"no folder {place}", "name those in which pieces were carried")
    if not work.load.exists():
        load, found = pieces.find([*places, work.store])
        pieces.check(load, found)
        if missing := pieces.missing(load, found):
            pieces.keep(load, found, work.store)
            raise ArtifactError(
                f"{len(missing)} of {len(load.pieces)} pieces are missing: {', '.join(missing)}",
                "carry them and run the same command; those that came are kept",
            )
        _check_python(load.about.get("python"))
        pieces.join(load, found, work.carried)
        _install(sorted((work.carried / "wheels").glob("*.whl")), work.site)
        load.write(work.load)
        shutil.rmtree(work.store, ignore_errors=True)
    elif any((place / pieces.LIST).is_file() for place in places):
        known, (given, _) = pieces.Load.read(work.load), pieces.find(places)
        if known.digest != given.digest:
            raise ArtifactError(f"{work.folder} holds another load", "choose another --work, or delete it")


def _check_python(wanted: str | None) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted not in (None, here):
        raise ArtifactError(
            f"the wheels are for Python {wanted}, and this is {here}",
            f"start it with python{wanted}, or prepare with --python {here}",
        )


def _install(wheels: Sequence[Path], site: Path) -> None:
    with atomic_folder(site, overwrite=True) as temporary:
        if not wheels:
            return
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
                *("--no-deps", "--no-compile", "--no-cache-dir", "--no-warn-script-location"),
                *("--target", str(temporary), *map(str, wheels)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["pip says nothing"]
            raise ArtifactError(f"the wheels do not install: {said[-1]}", f"is pip in {sys.executable}?")


def environment(work: Work) -> dict[str, str]:
    """Of a stage: the wheels before what is there, nothing from a network, no Java."""
    path = [str(ROOT), str(work.site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "SLEUTH_CARRIED": str(work.carried),
        "SLEUTH_GPU_RUN": str(work.run),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_stage(stage: Stage, command: Sequence[str], work: Work, ledger: Ledger, seconds: float) -> None:
    """Run one process of ``stage``, interrupted after ``seconds``; the ledger tells what came of it."""
    spent = ledger.of(stage)
    before, started = spent.seconds, time.monotonic()
    spent.attempts += 1
    spent.state, spent.why = "stopped", "interrupted"  # as it stays if this process is killed
    child = subprocess.Popen(
        command, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    copier = threading.Thread(target=_copy_output, args=(child, work.log(stage)), daemon=True)
    copier.start()
    try:
        while child.poll() is None:
            spent.seconds = before + time.monotonic() - started
            ledger.save()
            if time.monotonic() - started > seconds:
                spent.why = TIME_IS_UP
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_TICK)
        else:
            spent.state = "failed"
    finally:
        _end(child)
        copier.join(GRACE)
        spent.seconds = before + time.monotonic() - started
        if work.figures(stage).exists():
            spent.state, spent.why = "done", ""
        elif spent.state == "failed":
            died = child.returncode < 0
            spent.why = f"killed by signal {-child.returncode}" if died else _last_line(work.log(stage))
        ledger.save()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt the process, and kill what is left of its group."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _copy_output(child: subprocess.Popen[bytes], log: Path) -> None:
    assert child.stdout is not None
    with log.open("ab") as file:
        for line in child.stdout:
            file.write(line)
            file.flush()
            with contextlib.suppress(OSError, ValueError):  # nobody may be listening any more
                sys.stdout.buffer.write(b"  " + line)
                sys.stdout.flush()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")


def run_stages(
    stages: Sequence[Stage], command: Command, work: Work, ledger: Ledger, minutes: float, call_ends: float
) -> Iterator[Stage]:
    """Run what is left of the stages while time is left, yielding after every process.

    ``call_ends`` is on the monotonic clock.
    """
    for stage in stages:
        while not work.figures(stage).exists():
            in_all = left([SETUP, *stages], stage, ledger, minutes)
            seconds = min(in_all, AT_ONCE, call_ends - time.monotonic() - GRACE)
            if seconds < LEAST:
                print(f"{stage.name}: no time is left for it", flush=True)
                break
            print(f"{stage.name}: {stage.asks} (at most {seconds:.0f} s)", flush=True)
            run_stage(stage, command(stage, in_all), work, ledger, seconds)
            spent = ledger.of(stage)
            print(f"{stage.name}: {spent.state}{f', {spent.why}' if spent.why else ''}", flush=True)
            yield stage
            if spent.state == "failed":
                break
        if work.figures(stage).exists():
            ledger.of(stage).state = "done"
        elif stage.needed and ledger.of(stage).state == "failed":
            break


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, help="folders with pieces and their list")
    parser.add_argument("--out", type=Path, help="where the small files go; by default WORK/results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu", help="where all else goes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all calls together")
    parser.add_argument("--call-minutes", type=float, default=float("inf"), help="of this call")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help=", ".join(stage.name for stage in STAGES))
    parser.add_argument(
        "--config", type=Path, help="the run, instead of the one carried; its paths may use ${SLEUTH_CARRIED}"
    )
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a few rows and steps, to try all of it")
    parser.add_argument("--mib", type=float, default=12.0, help="how much may come home")
    options = parser.parse_args(arguments)
    known = [stage.name for stage in STAGES]
    for name in options.only or ():
        if name not in known:
            parser.error(f"no stage '{name}' ({did_you_mean(name, known)})")
    if options.minutes <= 0 or options.call_minutes <= 0 or options.mib <= 0:
        parser.error("--minutes, --call-minutes and --mib must be above 0")
    return options


def stage_command(options: argparse.Namespace, work: Work) -> Command:
    """The command of a stage's process."""
    config = (options.config or work.carried / "config.yaml").resolve()
    rest = ["--config", str(config), "--device", options.device, *(["--small"] if options.small else [])]
    return lambda stage, seconds: [
        *(sys.executable, "-m", "benchmarks.gpu.stage", stage.name, str(work.folder), *rest),
        *("--seconds", f"{seconds:.0f}"),
        *(["--set", *options.overrides] if options.overrides else []),
    ]


def main(arguments: Sequence[str] | None = None, command: Command | None = None) -> int:
    options = parsed(arguments)
    call_ends = time.monotonic() + 60 * options.call_minutes
    work = Work(options.work)
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only]
    out, limit = options.out or work.folder / "results", round(options.mib * pieces.MIB)
    try:
        with work.claimed():
            ledger = Ledger.open(work.ledger)
            _set_up_timed(work, options.places, ledger)
            chosen = command or stage_command(options, work)
            for stage in stages:
                ledger.of(stage)  # so that the summary has those too that nothing came of
            try:
                for _ in run_stages(stages, chosen, work, ledger, options.minutes, call_ends):
                    bring_home(work, ledger, out, limit)  # in case that this call is killed
            finally:
                told = bring_home(work, ledger, out, limit)
    except SleuthError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    _show(stages, ledger, told, options.minutes)
    return _status({ledger.of(stage).state for stage in stages})


def _set_up_timed(work: Work, places: Sequence[Path], ledger: Ledger) -> None:
    spent, started = ledger.of(SETUP), time.monotonic()
    try:
        set_up(work, places)
        spent.state = "done"
    finally:
        spent.seconds += time.monotonic() - started
        spent.attempts += 1
        ledger.save()


def _show(stages: Sequence[Stage], ledger: Ledger, told: str, minutes: float) -> None:
    print(f"\n{'stage':12}{'state':9}{'seconds':>8}")
    for stage in (SETUP, *stages):
        spent = ledger.of(stage)
        print(f"{stage.name:12}{spent.state:9}{spent.seconds:8.0f}  {spent.why}".rstrip())
    print(f"{ledger.total / 60:.1f} of {minutes:g} minutes; {told}")


def _status(states: Set[str]) -> int:
    if "failed" in states:
        return FAILED
    return DONE if states == {"done"} else LEFT


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
