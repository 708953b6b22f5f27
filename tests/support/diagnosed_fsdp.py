"""Launched by torchrun on two ranks: diagnose a model sharded by FSDP2, between steps of its training."""

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GPT2Config

from hf_plasticity import PlasticityError
from hf_plasticity.diagnostics import (
    CURVATURE_MEASURES,
    MEASURES,
    DiagnosticsConfig,
    diagnose,
    save_weights,
)
from hf_plasticity.diagnostics.gradients import causal_lm_loss


CONFIG = DiagnosticsConfig(measures=[name for name in MEASURES if name not in CURVATURE_MEASURES])
BLOCKS = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(1))


def train(model, path: str | None) -> list[torch.Tensor]:
    """Four steps with dropout; a diagnosis before each where a path for the initial weights is given."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    if path is not None:
        save_weights(model, path, write=dist.get_rank() == 0)
        dist.barrier()
    for _ in range(4):
        if path is not None:
            diagnose(model, BLOCKS, CONFIG, reference=path)
        causal_lm_loss(model, torch.randint(32, (2, 16)), None).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().full_tensor() for parameter in model.parameters()]


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16))

    def sharded():
        model = copy.deepcopy(whole)
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    model, reference = sharded(), {name: torch.ones_like(p) for name, p in whole.named_parameters()}
    expected = diagnose(whole, BLOCKS, CONFIG, reference=reference)
    found = diagnose(model, BLOCKS, CONFIG, reference=reference)
    for name, value in expected.scalars().items():
        assert abs(found.scalars()[name] - value) <= 1e-4 * abs(value) + 1e-6, (name, value, found.scalars()[name])
    everyone = [None, None]
    dist.all_gather_object(everyone, found.scalars())
    assert everyone[0] == everyone[1], "the ranks disagree"

    # A write to the sharded parameters right after a diagnosis must count.
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert model(BLOCKS).logits.abs().max() == 0, "a write after a diagnosis was lost"

    try:
        diagnose(model, BLOCKS, DiagnosticsConfig(measures=CURVATURE_MEASURES))
    except PlasticityError as error:
        assert "FSDP" in str(error)
    else:
        raise AssertionError("the Hessian under FSDP2 must be refused")

    plain, diagnosed = train(sharded(), None), train(sharded(), f"{folder}/initial.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(plain, diagnosed)), "diagnoses changed the training"
    dist.barrier()
    dist.destroy_process_group()
    # torch 2.13 with gloo sometimes aborts when the interpreter exits, after all is done and compared.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
