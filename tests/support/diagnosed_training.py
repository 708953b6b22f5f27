"""A tiny training run, with or without diagnoses; launched by torchrun it trains under DDP or FSDP2."""

import os
import random
import sys

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainerCallback, TrainingArguments

from hf_plasticity.diagnostics import CURVATURE_MEASURES, MEASURES, DiagnosticsCallback, DiagnosticsConfig
from hf_plasticity.network import whole


BLOCKS = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(1))
EVERYTHING = DiagnosticsConfig(measures=MEASURES, hessian_iterations=2, batch_size=3)


class Rows(torch.utils.data.Dataset):
    """Random rows that depend only on their index."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.randint(32, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row, "labels": row}


def train(folder, diagnosed: bool, config=EVERYTHING, max_steps=6, resume=None, **settings) -> Trainer:
    """Six steps with dropout. `settings` go to `TrainingArguments`, but for `callback`, which goes to the callback."""
    callback = settings.pop("callback", {"every": 2})
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy=settings.pop("save_strategy", "no"),
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **settings,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0, eos_token_id=0)
    )
    trainer = Trainer(model=model, args=args, train_dataset=Rows())
    if diagnosed:
        trainer.add_callback(DiagnosticsCallback(BLOCKS, config, **callback))
    trainer.add_callback(Randomness())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Randomness(TrainerCallback):
    """Keep a digest of every random state at each step."""

    def on_step_end(self, args, state, control, **kwargs):
        numbers = (torch.get_rng_state().sum().item(), random.getstate()[1][-1], int(np.random.get_state()[1].sum()))
        self.seen = [*getattr(self, "seen", []), numbers]


def outcome(trainer: Trainer) -> dict:
    """All that must be equal with and without diagnoses."""
    logged = [
        {key: entry[key] for key in ("step", "loss", "grad_norm", "learning_rate")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    randomness = next(call for call in trainer.callback_handler.callbacks if isinstance(call, Randomness))
    return {
        "weights": [whole(parameter).clone() for parameter in trainer.model.parameters()],
        "optimizer": [
            whole(value).clone()
            for state in trainer.optimizer.state_dict()["state"].values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ],
        "log": logged,
        "random": randomness.seen,
    }


def same(a: dict, b: dict) -> bool:
    """Bit for bit."""
    tensors = all(
        len(a[name]) == len(b[name]) and all(torch.equal(x, y) for x, y in zip(a[name], b[name]))
        for name in ("weights", "optimizer")
    )
    return tensors and a["log"] == b["log"] and a["random"] == b["random"]


def fsdp_on_cpu() -> None:
    """Let Accelerate shard on the CPU, where it would silently fall back to DDP."""
    initialize = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if self.distributed_type == DistributedType.MULTI_CPU and plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    AcceleratorState.__init__ = patched


def main(folder: str, sharded: bool) -> None:
    """Train with and without diagnoses on two ranks, and compare."""
    config, settings = EVERYTHING, {}
    if sharded:
        fsdp_on_cpu()
        config = DiagnosticsConfig(measures=[name for name in MEASURES if name not in CURVATURE_MEASURES])
        settings = {
            "fsdp": True,
            "fsdp_config": {
                "fsdp_version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": ["GPT2Block"],
                "cpu_ram_efficient_loading": False,
            },
        }
    plain = outcome(train(f"{folder}/plain", diagnosed=False, **settings))
    diagnosed = train(f"{folder}/diagnosed", diagnosed=True, config=config, **settings)
    assert dist.get_world_size() == 2
    assert isinstance(next(diagnosed.model.parameters()), DTensor) == sharded
    assert same(plain, outcome(diagnosed)), "diagnoses changed the training"
    scalars = [entry for entry in diagnosed.state.log_history if "diagnostics/dormant_units" in entry]
    everyone: list = [None, None]
    dist.all_gather_object(everyone, scalars)
    assert len(scalars) == 4 and everyone[0] == everyone[1], "the ranks disagree"
    dist.barrier()
    dist.destroy_process_group()
    # torch 2.13 with gloo sometimes aborts when the interpreter exits, after all is done and compared.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sharded="fsdp" in sys.argv[2:])
