"""
What mitigations/test_distributed.py looks at, run by all processes of one launch:
`mitigated_ranks.py ddp|fsdp2 FOLDER`.
"""

import sys
from pathlib import Path

from accelerate import PartialState

from support import fsdp2_on_cpu
from support.mitigations import CASES, settings_of
from support.ranks import COMPARABLE, break_off, continual, train


# One of each kind: sums over processes, a running state, gathered matrices, whole parameters, attention.
RESUMED = ("redo", "cbp", "swr", "l2_init", "head_reset")


def main(kind: str, folder: Path) -> None:
    if kind == "fsdp2":
        fsdp2_on_cpu.enable()
    PartialState(cpu=True)
    for name in CASES:
        settings = COMPARABLE | settings_of(name)
        train(folder / name, continual, 1, no_probe=True, **settings)
        if name in RESUMED:
            # The probes of the first are invisible, and the second resumes.
            train(folder / f"{name}-probed", continual, 1, **settings)
            break_off(folder / f"{name}-resumed", 1, no_probe=True, **settings)
            train(folder / f"{name}-resumed", continual, 1, no_probe=True, **settings)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
