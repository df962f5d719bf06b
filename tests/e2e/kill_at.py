"""Run ``sleuth`` and kill this process the hard way at a named moment: ``kill_at.py generate:3 train ...``.

``generate`` dies in the middle of the rollout of that step, ``update`` between its gradient and the
optimizer, ``save`` when the weights of its checkpoint are written and the rest is not.
"""

from __future__ import annotations

import os
import signal
import sys


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, step: int) -> None:
    from transformers import Trainer

    from agent.learning.callbacks import GradientGuard
    from agent.policies.transformers_policy import TransformersPolicy

    if moment == "generate":
        take = TransformersPolicy._take

        def dying_take(self, row, *rest):
            if self.version == step and len(row.tokens) == 3:
                die()
            take(self, row, *rest)

        TransformersPolicy._take = dying_take
    elif moment == "update":
        GradientGuard.on_pre_optimizer_step = lambda self, args, state, control, **_: (
            die() if state.global_step == step else None
        )
    elif moment == "save":
        rest_of_checkpoint = Trainer._save_optimizer_and_scheduler

        def dying_save(self, output_dir):
            if self.state.global_step == step and "grpo" in str(output_dir):
                die()
            return rest_of_checkpoint(self, output_dir)

        Trainer._save_optimizer_and_scheduler = dying_save
    else:
        raise SystemExit(f"no moment {moment}")


if __name__ == "__main__":
    name, _, at = sys.argv[1].partition(":")
    arm(name, int(at))
    from cli.main import main

    main(sys.argv[2:])
