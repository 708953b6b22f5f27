"""
Make a set of tiny runs with the package of a source tree: `reference_runs.py TREE FOLDER [--seed N] [--only NAME…]`.

compare_runs.py compares the runs of two trees. The set covers results that a change can move without an error: inline
and deferred probes, the schedules, LoRA, bf16, accumulation, published checkpoints, and an interrupted run. A run
takes about half a minute. A run that is in FOLDER already is deleted first.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path


# fmt: off
TRAINING = [
    "--size=25K", "--cycles=2", "--task_steps=4", "--warmup_steps=1", "--context_length=32",
    "--global_batch_tokens=128", "--languages", "syn1", "syn2", "--probe_steps=4", "--probe_eval_sequences=4",
    "--logging_steps=3", "--data_cache_dir=blocks", "--disable_tqdm=true", "--use_cpu=true",
]
DIAGNOSED = ["--diagnose=true", "--diagnostics_sequences=4"]
FORGETTING = ["--evaluate_forgetting=true"]
PROBE = [
    "--probe_steps=4", "--probe_eval_every=2", "--probe_eval_sequences=4", "--probe_batch_size=4",
    "--context_length=32", "--probe_language=syn9", "--data_cache_dir=blocks", "--disable_tqdm=true", "--use_cpu=true",
]
RUNS = {
    "rotation": [*DIAGNOSED, *FORGETTING],
    "deferred": [*DIAGNOSED, *FORGETTING, "--probe=deferred"],
    "stationary": ["--schedule=stationary", "--probe_repeats=2", "--probe_dense_start=true", "--probe_eval_every=4"],
    "lora": ["--probe_adaptation=lora", "--probe_lora_rank=2", "--train_tokenizer=300"],
    "bf16": ["--bf16=true", *DIAGNOSED, *FORGETTING],
    "gradual": ["--schedule=gradual", "--per_device_train_batch_size=1", "--label_smoothing_factor=0"],
    "interrupted": [*DIAGNOSED, *FORGETTING],
}
# fmt: on
# The optimizer steps at which the starts of the interrupted run are killed, counted over training and probes: in the
# second task of the first cycle, then, resumed from step 4, in the probe after it.
KILLED_AT = (4 + 7, 4 + 2)


def make(tree: Path, folder: Path, name: str, seed: int) -> None:
    """Make one run, `FOLDER/NAME`."""
    shutil.rmtree(folder / name, ignore_errors=True)

    def start(recipe: str, *arguments: str, killed_at: int | None = None) -> None:
        # Relative paths, so that the configurations of two sets are equal.
        script = [str(tree / "recipes" / recipe)]
        if killed_at is not None:
            script = [__file__, "--killed_at", str(killed_at), *script]
        environment = os.environ | {
            "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *script, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode != (0 if killed_at is None else -9):
            sys.exit(f"{name}: {recipe} ended with {done.returncode}\n{done.stderr[-3000:]}")

    if name == "published":
        for checkpoint in sorted((folder / "rotation").glob("cycle-*")):
            shutil.copytree(checkpoint, folder / name / "checkpoints" / checkpoint.name)
        flags = [*PROBE, *DIAGNOSED, f"--probe_seed={seed}"]
        start("probe.py", f"--model={name}/checkpoints", f"--output_dir={name}", *flags)
        return
    command = [*TRAINING, *RUNS[name], f"--seed={seed}", f"--output_dir={name}"]
    if name == "interrupted":
        for step in KILLED_AT:
            start("continual.py", *command, killed_at=step)
    start("continual.py", *command)
    if name == "deferred":
        start("probe.py", f"--model={name}", "--follow", "--poll_seconds=0.05", "--disable_tqdm=true", "--use_cpu")


def run_killed(step: int, script: str, arguments: list[str]) -> None:
    """Run a recipe that is killed with SIGKILL before its optimizer step number `step`."""
    import runpy
    import signal

    import torch

    steps, original = 0, torch.optim.AdamW.step

    def counted(*arguments, **options):
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    torch.optim.AdamW.step = counted
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="a checkout")
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="+", choices=[*RUNS, "published"], help="some of the runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or [*RUNS, "published"]:
        make(options.tree.resolve(), options.folder.resolve(), name, options.seed)
        print(name, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--killed_at"]:
        run_killed(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        main()
