"""
Launched by torchrun: the same training and probes by both head losses, on several processes.

`head_loss_ranks.py ddp|fsdp2 FILE` writes for each case the numbers of both.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

from hf_plasticity import PlasticityError
from hf_plasticity.network import head_loss, is_fsdp, reshard, whole
from hf_plasticity.probing import ProbeConfig, run_probe
from support import fsdp2_on_cpu
from support.tiny import VOCABULARY, random_blocks, tiny_model


BATCH = 4


def numbers(family: str, precision: str, mode: str, sharded: bool) -> list[float]:
    """Losses of training and of two probes, and by how much training has changed each parameter."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = tiny_model(family, dropout=0.0)
    assert head_loss.use_head_loss(model, mode) == mode
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    assert is_fsdp(model) == sharded
    results = []
    for step in range(4):
        mine = random_blocks(BATCH * accelerator.num_processes, seed=step)
        mine = torch.from_numpy(mine[accelerator.process_index :: accelerator.num_processes])
        loss = model(input_ids=mine, labels=mine, num_items_in_batch=BATCH * 11).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        results.append(accelerator.reduce(loss.detach(), "mean").item())
    if sharded and family == "llama":
        # The embedding and the head are in the root group, whole in the forward pass and sharded outside it.
        reshard(model)
        assert isinstance(model.get_output_embeddings().weight, DTensor)
    for adaptation in ("full", "lora"):
        config = ProbeConfig(
            steps=2, eval_every=1, eval_sequences=3, batch_size=4, learning_rate=1e-2, adaptation=adaptation,
            lora_rank=2,
        )  # fmt: skip
        blocks = random_blocks(16, seed=7), random_blocks(3, seed=8)
        results += run_probe(model, *blocks, config, show_progress=False).losses
    reshard(model)
    for before, after in zip(tiny_model(family).parameters(), model.parameters(), strict=True):
        results.append((whole(after) - before).norm().item())
    return results


def check_head_of_its_own() -> None:
    """A head that FSDP2 shards apart from the root is refused."""
    model = tiny_model("llama")
    head_loss.use_head_loss(model, "fused")
    torch.distributed.fsdp.fully_shard(model.lm_head)
    torch.distributed.fsdp.fully_shard(model)
    tokens = torch.ones(1, 4, dtype=torch.long)
    try:
        model(input_ids=tokens, labels=tokens)
    except PlasticityError as error:
        assert "FSDP2's root group" in str(error)
    else:
        raise AssertionError("a head in a group of its own was accepted")


def main(kind: str, file: Path) -> None:
    if kind == "fsdp2":
        fsdp2_on_cpu.enable()
    head_loss.CHUNK_LOGITS, head_loss.CHUNK_MULTIPLE = 20 * VOCABULARY, 4
    results = {
        f"{family}-{precision}": [
            numbers(family, precision, mode, sharded=kind == "fsdp2") for mode in ("logits", "fused")
        ]
        for family, precision in (("gpt2", "bf16"), ("llama", "no"))
    }
    if kind == "fsdp2":
        check_head_of_its_own()
    if dist.get_rank() == 0:
        file.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    # torch 2.13 with gloo sometimes aborts when the interpreter exits, after everything is done.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
