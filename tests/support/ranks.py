"""
What trainer/test_distributed.py looks at, run by all processes of one launch:
`ranks.py ddp|fsdp2 FOLDER all|comparable|compiled`.

Every process writes what it has at the end of each training to `FOLDER/<name>/rank-<number>.pt`.
"""

import contextlib
import hashlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from hf_plasticity import PlasticityError
from hf_plasticity.network import local, reshard
from hf_plasticity.probing import PlasticityProbeCallback, ProbeConfig
from support import fsdp2_on_cpu
from support.runs import UNREPEATABLE
from support.tiny import random_blocks, tiny_model
from support.trainers import StopAt, make_trainer, stop_at


BATCH = 12
SETTINGS = {"batch": BATCH, "task_steps": 2, "probe_steps": 2, "warmup_steps": 1, "probe_eval_sequences": 5}
PROBES = {"none": {"no_probe": True}, "full": {}, "lora": {"probe_adaptation": "lora", "probe_lora_rank": 2}}
TRAININGS = [(1, "fp32"), (2, "fp32"), (2, "bf16")]
# For comparisons between numbers of processes: no random numbers, and a large epsilon, because Adam amplifies
# rounding where a gradient is zero by design (the bias of the keys).
COMPARABLE = {"dropout": 0.0, "adam_epsilon": 1e-3, "evaluate_forgetting": True}
INTERRUPTED_STEP = 7


def accumulations_of(processes):
    """None, and the smallest other that divides the share of a process."""
    return (1, 2) if BATCH // processes % 2 == 0 else (1, 3)


def end_of(trainer):
    """The state of this process at the end of a training."""
    reshard(trainer.model_wrapped)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": {name: local(value).detach().clone() for name, value in trainer.model.named_parameters()},
        "trainable": [value.requires_grad for value in trainer.model.parameters()],
        "optimizer": [
            {name: local(value).clone() for name, value in state.items()} for state in trainer.optimizer.state.values()
        ],
        "scheduler": trainer.lr_scheduler.last_epoch,
        "rng": torch.get_rng_state(),
        "log": [{name: value for name, value in entry.items() if name not in UNREPEATABLE} for entry in log],
        "distributed_type": str(trainer.accelerator.distributed_type),
    }


def continual(folder, accumulation, **settings):
    share = BATCH // PartialState().num_processes
    trainer = make_trainer(
        folder / "run", folder.parent / "blocks", per_device_train_batch_size=share // accumulation,
        **SETTINGS | settings,
    )  # fmt: skip
    assert trainer.args.gradient_accumulation_steps == accumulation
    trainer.batches = [[] for _ in range(trainer.args.max_steps)]
    training_step = trainer.training_step

    def watched(model, inputs, *arguments, **options):
        rows = inputs["input_ids"].cpu().numpy()
        trainer.batches[trainer.state.global_step] += [hashlib.sha1(row.tobytes()).hexdigest() for row in rows]
        return training_step(model, inputs, *arguments, **options)

    trainer.training_step = watched
    return trainer


def plain(folder, adaptation):
    """A Trainer script that uses only the callback of this package."""
    ids = torch.from_numpy(random_blocks(120, seed=3))

    def collate(rows):
        batch = torch.stack([row for (row,) in rows])
        return {"input_ids": batch, "labels": batch}

    args = TrainingArguments(
        output_dir=str(folder / "run"), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(tiny_model(), args, train_dataset=TensorDataset(ids), data_collator=collate)
    if adaptation != "none":
        config = ProbeConfig(
            steps=3, eval_every=2, eval_sequences=5, batch_size=BATCH, learning_rate=1e-2, adaptation=adaptation,
            lora_rank=2,
        )  # fmt: skip
        blocks = random_blocks(60, seed=1), random_blocks(5, seed=2)
        trainer.add_callback(PlasticityProbeCallback(*blocks, config, language="zz", every=3))
    return trainer


def keep(folder, trainer):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(end_of(trainer), folder / f"rank-{PartialState().process_index}.pt")
    # Not with the package's own function, which is being tested.
    gathered = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in trainer.model.state_dict().items()
    }
    if PartialState().is_main_process:
        torch.save(gathered, folder / "gathered.pt")


def like_new():
    """What Accelerate keeps of one training in the process for the next."""
    AcceleratorState._reset_state()
    GradientState._reset_state()


def train(folder, build, *arguments, **settings):
    """A training from its beginning to its end, or from the checkpoint that there is."""
    like_new()
    trainer = build(folder, *arguments, **settings)
    resume = {"resume_from_checkpoint": True} if build is continual else {}
    trainer.train(**resume)
    keep(folder, trainer)
    if build is continual:
        shares = gather_object([trainer.batches])
        batches = [sorted(itertools.chain(*step)) for step in zip(*shares)]
        (folder / "batches.json").write_text(json.dumps(batches))


def break_off(folder, *arguments, **settings):
    """A training that ends silently between two checkpoints."""
    like_new()
    trainer = continual(folder, *arguments, **settings)
    stop_at(trainer, INTERRUPTED_STEP)
    with contextlib.suppress(StopAt):
        trainer.train()


def main(kind: str, folder: Path, part: str) -> None:
    if kind == "fsdp2":
        fsdp2_on_cpu.enable()
    PartialState(cpu=True)
    accumulations = accumulations_of(PartialState().num_processes)
    if part == "compiled":
        for probe in PROBES:
            refused = kind == "fsdp2" and probe == "lora"
            with (
                pytest.raises(PlasticityError, match="'lora' is not supported")
                if refused
                else contextlib.nullcontext()
            ):
                train(folder / f"compiled-{probe}", continual, 2, torch_compile_backend="aot_eager", **PROBES[probe])
    for accumulation in accumulations if part != "compiled" else ():
        train(folder / f"comparable-{accumulation}", continual, accumulation, **COMPARABLE)
    if part == "all":
        for (accumulation, precision), probe in itertools.product(TRAININGS, PROBES):
            name = f"continual-{accumulation}-{precision}-{probe}"
            train(folder / name, continual, accumulation, bf16=precision == "bf16", **PROBES[probe])
        for probe in PROBES:
            train(folder / f"plain-{probe}", plain, probe)
        break_off(folder / "continued-here", accumulations[-1])
        train(folder / "continued-here", continual, accumulations[-1])
    if part == "all" and kind == "ddp":
        break_off(folder / "continued-elsewhere", 1, **COMPARABLE)
    if part == "all" and kind == "fsdp2":
        fsdp2_on_cpu.enable("FULL_STATE_DICT")
        break_off(folder / "continued-full", accumulations[-1])
        train(folder / "continued-full", continual, accumulations[-1])
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
