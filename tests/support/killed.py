"""
Run a recipe and kill it with SIGKILL: `killed.py EVENT:COUNT recipe.py arguments…` dies at the COUNT-th time that

- `task`: a training step begins,
- `probe`: a step of a probe begins,
- `checkpoint`: weights and optimizer of a checkpoint are written, the rest of it is not,
- `marker`: all of a checkpoint is written but its marker,
- `cycle`: the weights of a probed checkpoint are written, but not yet under their name,
- `record`: a line is about to be added to probes.jsonl,
- `recorded`: it has just been,
- `push`: a branch on the Hub is made, and its files are about to be sent,
- `pushed`: they have just been,
- `mitigation`: a line is about to be added to mitigations.jsonl,
- `rotate`: an old checkpoint has lost its marker, and its files are about to be deleted,
- `final`: the state of the finished run is about to be written,
- `report`: the report of the finished run is about to be written.

In place of SIGKILL, SIGNALS may name others to send in turn, such as `SIGINT,SIGINT`, and KILLED_RANK the process.
"""

import os
import runpy
import signal
import sys

import transformers
from huggingface_hub import HfApi

from hf_plasticity.analysis import report
from hf_plasticity.mitigations import callback
from hf_plasticity.probing import checkpoint, probe, recorder
from hf_plasticity.trainer import checkpoint as trainer_checkpoint
from hf_plasticity.trainer import trainer


EVENTS = {
    "task": (trainer.ContinualTrainer, "training_step", "before"),
    "probe": (probe, "_training_step", "before"),
    "checkpoint": (transformers.Trainer, "_save_rng_state", "before"),
    "marker": (trainer, "mark_complete", "before"),
    "cycle": (checkpoint, "_move_to_final_name", "before"),
    "record": (recorder, "append_record", "before"),
    "recorded": (recorder, "append_record", "after"),
    "push": (HfApi, "create_commit", "before"),
    "pushed": (HfApi, "create_commit", "after"),
    "mitigation": (callback, "append_record", "before"),
    "rotate": (trainer_checkpoint, "_delete_files", "before"),
    "final": (trainer.ContinualTrainer, "save_state", "before"),
    "report": (report, "write_page", "before"),
}


def die_at(event: str, count: int) -> None:
    owner, name, when = EVENTS[event]
    original = getattr(owner, name)
    seen = 0

    def wrapper(*arguments, **options):
        nonlocal seen
        seen += 1
        if when == "before" and seen == count:
            kill()
        result = original(*arguments, **options)
        if when == "after" and seen == count:
            kill()
        return result

    setattr(owner, name, wrapper)


def kill() -> None:
    for name in os.environ.get("SIGNALS", "SIGKILL").split(","):
        os.kill(os.getpid(), signal.Signals[name])


if __name__ == "__main__":
    event, count = sys.argv[1].split(":")
    if int(os.environ.get("RANK", 0)) == int(os.environ.get("KILLED_RANK", 0)):
        die_at(event, int(count))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print("was not killed", file=sys.stderr)
    sys.exit(9)
