"""One stage in a process of its own; ``run`` starts it, and it can be started by hand to look at one thing.

    python -m benchmarks.gpu.stage STAGE WORK --config CONFIG.yaml [--device cpu] [--small] [--set KEY=VALUE …]

Its figures go to WORK/stages/STAGE.json when it ends.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context, Parts
from benchmarks.gpu.orphans import end_with_parent
from benchmarks.gpu.stages import doctor, precision, speed, train
from sleuth.errors import SleuthError
from sleuth.layout import write_record

WORK: dict[str, Callable[[Context], dict[str, Any]]] = {
    "doctor": doctor.look,
    "precision": precision.measure,
    "speed": speed.measure,
    "train": train.train,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=WORK)
    parser.add_argument("work", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=480.0, help="that the stage has, in one process or several")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent()
    folder = options.work / "stages"
    context = Context(
        options.work.resolve(),
        options.config,
        options.device,
        options.small,
        options.seconds,
        tuple(options.overrides),
        Parts(folder / f"{options.stage}.parts.json"),
    )
    try:
        figures = WORK[options.stage](context)
        context.parts.check()
        write_record(folder / f"{options.stage}.json", figures)
    except SleuthError as error:
        print(f"error: {error}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
