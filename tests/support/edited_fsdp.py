"""Launched by torchrun: units and heads are reset in a model sharded by FSDP2 and in a whole one."""

import copy
import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen2Config

from hf_plasticity.network import (
    InitialDistribution,
    find_structure,
    is_fsdp,
    local,
    optimizer_moments,
    reshard,
    shard_of,
    shard_offset,
    whole,
)
from support import fsdp2_on_cpu


# Most dimensions divide neither by 2 nor by 3. Of Qwen's 4 rows of keys and values the last of 3 processes holds none.
CONFIGS = [
    GPT2Config(
        n_embd=35, n_inner=23, n_layer=2, n_head=5, vocab_size=47, n_positions=16, bos_token_id=1, eos_token_id=1
    ),
    Qwen2Config(
        hidden_size=20, intermediate_size=23, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
        vocab_size=47, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ),
]  # fmt: skip
TOKENS = torch.randint(2, 47, (2, 9), generator=torch.Generator().manual_seed(1))


def edited(model):
    """The slices that a reset of units and heads touches, and whether they are drawn afresh."""
    for layer in find_structure(model).layers:
        for partition in layer.units.incoming:
            yield from ((slices, True) for slices in partition.slices([0, 11, 22]))
        yield from ((slices, False) for slices in layer.units.outgoing.slices([0, 11, 22]))
        group = layer.heads.kv_count - 1
        queries = layer.heads.query_heads(group)
        for partition, heads in (
            (layer.heads.query, queries),
            (layer.heads.key, [group]),
            (layer.heads.value, [group]),
        ):
            yield from ((slices, True) for slices in partition.slices(heads))
        yield from ((slices, False) for slices in layer.heads.output.slices(queries))


def train(model, optimizer):
    for _ in range(2):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model, optimizer):
    """Every parameter and its moments, put together."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = whole(parameter).clone()
        for kind, moment in optimizer_moments(optimizer, parameter).items():
            tensors[f"{name}/{kind}"] = whole(moment).clone()
    return tensors


def reset(model, optimizer):
    distribution, read = InitialDistribution(model), []
    for slices, fresh in edited(model):
        read.append(slices.read())
        if fresh:
            slices.write_(slices.of(distribution.draw(slices.name, seed=3, step=2)))
        else:
            slices.zero_()
        for moment in optimizer_moments(optimizer, slices.parameter).values():
            slices.zero_(moment)
    return read


def compare(config: PreTrainedConfig) -> None:
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    sharded = copy.deepcopy(plain)
    sharded, optimizer = accelerator.prepare(sharded, torch.optim.AdamW(sharded.parameters()))
    assert is_fsdp(sharded) and not is_fsdp(plain)
    train(sharded, optimizer)
    with torch.no_grad():
        sharded(TOKENS)
    reshard(sharded)

    # The whole model continues from exactly the sharded one's parameters and moments.
    before, plain_optimizer = state(sharded, optimizer), torch.optim.AdamW(plain.parameters())
    train(plain, plain_optimizer)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(before[name])
            for kind, moment in optimizer_moments(plain_optimizer, parameter).items():
                moment.copy_(before[f"{name}/{kind}"])

    # k_proj and v_proj, weight and bias, in two layers.
    empty = torch.tensor(sum(local(parameter).numel() == 0 for parameter in sharded.parameters()))
    dist.all_reduce(empty)
    assert empty == (8 if dist.get_world_size() == 3 and config.model_type == "qwen2" else 0)

    found, expected = reset(sharded, optimizer), reset(plain, plain_optimizer)
    assert len(found) > 10 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    after, wanted = state(sharded, optimizer), state(plain, plain_optimizer)
    assert after.keys() == wanted.keys() and any(name.endswith("/exp_avg_sq") for name in after)
    for name, tensor in wanted.items():
        assert torch.equal(after[name], tensor), name
    assert sum(not torch.equal(before[name], tensor) for name, tensor in after.items()) > 20
    with torch.no_grad():
        torch.testing.assert_close(sharded(TOKENS).logits, plain(TOKENS).logits)
    reshard(sharded)

    # A mask of single entries reaches each shard too.
    for (name, parameter), other in zip(sharded.named_parameters(), plain.parameters()):
        mask = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(name))) < 0.3
        assert sum(shard_offset(parameter)[1:]) == 0
        with torch.no_grad():
            local(parameter)[shard_of(mask, parameter)] = 7
            other[mask] = 7
        assert torch.equal(whole(parameter), other), name


def main() -> None:
    fsdp2_on_cpu.enable()
    for config in CONFIGS:
        compare(config)
    dist.barrier()
    dist.destroy_process_group()
    # torch 2.13 with gloo sometimes aborts when the interpreter exits, after all is done and compared.
    os._exit(0)


if __name__ == "__main__":
    main()
