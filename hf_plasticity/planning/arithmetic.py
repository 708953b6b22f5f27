"""
The cost of a run, computed from plain numbers.

FLOPs are those of the matrix products, two for each multiplication with its addition. For one token in a sequence of
T, in a model of L blocks of width d over a vocabulary of V, the forward pass has

- 2 · 12·L·d² in the weight matrices of the blocks (3d² + d² for attention, 4d² + 4d² for the MLP),
- 4·L·d·T in the attention scores and their sums over values (2·d·T each); all T keys are counted, as in
  huggingface.co/papers/2204.02311 (appendix B), although a causal kernel can leave out half of them,
- 2·d·V in the head, which is most of a small model's work over a large vocabulary.

The backward pass has twice as much, for the gradients of inputs and of weights: 72·L·d² + 12·L·d·T + 6·d·V to train on
a token. Biases, layer norms, softmax and the optimizer are left out; embeddings are looked up.

Bytes of a training step are those of AdamW in float32 (4 for a parameter, 4 for its gradient, 8 for its two moments)
plus what a micro-batch leaves for the backward pass:

- 16·d numbers a token and block (d each for the inputs of both layer norms, of the attention and MLP projections and
  for the attention's output, 3·d queries, keys and values, 4·d each before and after the GELU), 64·d bytes in float32.
  Under bfloat16 the inputs of the layer norms stay float32: 36·d. Attention scores are not kept (SDPA).
- 12·V a token for the loss over the vocabulary: log-probabilities in float32 and the two gradients beside them. With
  the fused loss, 8·V for each token of a chunk of about 2²⁷ logits, and the gradient of the head.

Nothing here imports torch.
"""

import math

from ..analysis.law import PAPER_LAW
from ..errors import PlasticityError
from ..models import ModelSize
from .plan import Compute, Disk, Memory, Plan, PredictedOnset, Seconds


FLOAT32 = 4
BFLOAT16 = 2
ADAM = 2 * FLOAT32
LOSS_BYTES = 3 * FLOAT32
SHARDINGS = ("none", "fsdp2")


def plan_run(
    *,
    d_model: int,
    layers: int,
    vocab_size: int,
    context_length: int,
    global_batch_tokens: int,
    task_steps: int,
    tasks_per_cycle: int,
    cycles: int,
    probe_every_cycles: int | None = 1,
    probe_steps: int = 0,
    probe_evaluations: int = 0,
    eval_sequences: int = 0,
    probe_repeats: int = 1,
    lora_rank: int | None = None,
    forgetting_languages: int = 0,
    num_processes: int = 1,
    sharding: str = "none",
    micro_batch_size: int | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    fused_head_bytes: int | None = None,
    save_steps: int | None = None,
    save_total_limit: int | None = 2,
    save_probe_checkpoints: bool = True,
    block_bytes: int = 0,
    tokens_per_second: float | None = None,
) -> Plan:
    """
    Compute the cost of a run.

    Args:
        d_model, layers, vocab_size, context_length (`int`): The model.
        global_batch_tokens, task_steps, tasks_per_cycle, cycles (`int`): The run.
        probe_every_cycles (`int`, *optional*, defaults to 1): Cycles between two probes; `None` for a run without.
        probe_steps, probe_evaluations (`int`, *optional*): Optimizer steps and evaluations of a probe.
        eval_sequences (`int`, *optional*): Sequences in an evaluation.
        probe_repeats (`int`, *optional*, defaults to 1): Probes at each point.
        lora_rank (`int`, *optional*): For probes by adapters of this rank on every projection.
        forgetting_languages (`int`, *optional*, defaults to 0): Languages that are evaluated after each cycle.
        num_processes (`int`, *optional*, defaults to 1): Devices.
        sharding (`str`, *optional*, defaults to `"none"`): `"none"` (one device, or DDP) or `"fsdp2"`.
        micro_batch_size (`int`, *optional*): Sequences in one forward on one device; its whole share by default.
        bf16, gradient_checkpointing (`bool`, *optional*): As in training.
        fused_head_bytes (`int`, *optional*): What the fused loss over the vocabulary takes
            (`network.head_loss.head_loss_bytes`); by default the loss that holds all logits.
        save_steps (`int`, *optional*): Steps between two checkpoints for resuming; `None` for a run without.
        save_total_limit (`int`, *optional*, defaults to 2): How many of them are kept; `None` for all.
        save_probe_checkpoints (`bool`, *optional*, defaults to `True`): Whether probed models are kept.
        block_bytes (`int`, *optional*): Of the prepared text, which depends on its source.
        tokens_per_second (`float`, *optional*): Training throughput over all devices.

    Returns:
        [`Plan`]

    Raises:
        [`PlasticityError`]: A batch that does not divide, or an unknown sharding.

    Example:

    ```python
    >>> from hf_plasticity.planning.arithmetic import plan_run

    >>> run = dict(context_length=2_048, global_batch_tokens=524_288, task_steps=9_537, tasks_per_cycle=8, cycles=48)
    >>> plan = plan_run(d_model=320, layers=4, vocab_size=151_680, probe_every_cycles=None, **run)
    >>> f"{plan.tokens:.2e} tokens, {plan.compute.training:.1e} FLOPs, {plan.compute.head_share:.0%} in the head"
    '1.92e+12 tokens, 6.8e+20 FLOPs, 82% in the head'
    ```
    """
    if sharding not in SHARDINGS:
        raise PlasticityError(f"sharding: '{sharding}' is unknown; choose one of {', '.join(SHARDINGS)}")
    if tokens_per_second is not None and not 0 < tokens_per_second < math.inf:
        raise PlasticityError(f"tokens_per_second: {tokens_per_second} is not a positive number")
    share = _share(global_batch_tokens, context_length, num_processes, micro_batch_size)
    micro_batch_size = micro_batch_size or share
    non_embedding = ModelSize(d_model, layers, heads=1).num_non_embedding_parameters
    parameters = non_embedding + (vocab_size + context_length) * d_model
    adapters = layers * 16 * (lora_rank or 0) * d_model
    tasks = cycles * tasks_per_cycle
    tokens = tasks * task_steps * global_batch_tokens
    probes = 0 if probe_every_cycles is None else 1 + cycles // probe_every_cycles

    matrices, attention, head = (
        24 * layers * d_model**2,
        4 * layers * d_model * context_length,
        2 * d_model * vocab_size,
    )
    forward = matrices + attention + head
    recomputed = matrices + attention if gradient_checkpointing else 0
    per_token = 3 * forward + recomputed
    # Frozen matrices need no gradients of their own, only those of their inputs; scores have no weights.
    probe_per_token = per_token if lora_rank is None else per_token - matrices - head + 6 * adapters
    evaluation = eval_sequences * context_length * forward
    compute_probes = (
        probes * probe_repeats * (probe_steps * global_batch_tokens * probe_per_token + probe_evaluations * evaluation)
    )
    compute_forgetting = cycles * forgetting_languages * evaluation
    compute = Compute(
        per_token=per_token,
        head_share=3 * head / per_token,
        attention_share=(3 * attention + (attention if gradient_checkpointing else 0)) / per_token,
        training=tokens * per_token,
        probes=compute_probes,
        forgetting=compute_forgetting,
        probe_share=compute_probes / (tokens * per_token + compute_probes + compute_forgetting),
    )
    seconds = None
    if tokens_per_second is not None:
        flops_per_second = per_token * tokens_per_second
        seconds = Seconds(
            tokens_per_second,
            training=tokens / tokens_per_second,
            probes=compute_probes / flops_per_second,
            forgetting=compute_forgetting / flops_per_second,
        )

    saved_points = probes if save_probe_checkpoints else 0
    prediction = PAPER_LAW.predict(non_embedding)
    return Plan(
        non_embedding_parameters=non_embedding,
        parameters=parameters,
        tasks_per_cycle=tasks_per_cycle,
        tasks=tasks,
        steps=tasks * task_steps,
        tokens=tokens,
        probes=probes,
        probe_repeats=probe_repeats,
        num_processes=num_processes,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=share // micro_batch_size,
        compute=compute,
        seconds=seconds,
        memory=_memory(
            d_model=d_model,
            layers=layers,
            vocab_size=vocab_size,
            context_length=context_length,
            parameters=parameters,
            adapters=adapters,
            probing=probes > 0,
            num_processes=num_processes,
            sharding=sharding,
            micro_batch_size=micro_batch_size,
            bf16=bf16,
            gradient_checkpointing=gradient_checkpointing,
            fused_head_bytes=fused_head_bytes,
        ),
        disk=Disk(
            checkpoints=(FLOAT32 + ADAM)
            * parameters
            * _checkpoints_at_once(tasks * task_steps, save_steps, cycles, save_total_limit),
            probed_checkpoints=saved_points * FLOAT32 * parameters,
            blocks=block_bytes,
            hub=(saved_points + 1) * FLOAT32 * parameters,
        ),
        onset=PredictedOnset(
            task=prediction.task,
            cycle=prediction.task / tasks_per_cycle,
            tokens=prediction.tokens,
            reached_by_tasks=tasks >= prediction.task,
            reached_by_tokens=tokens >= prediction.tokens,
            extrapolated=not 4.9e6 < non_embedding < 3.2e8,
        ),
    )


def _share(global_batch_tokens: int, context_length: int, num_processes: int, micro_batch_size: int | None) -> int:
    """Sequences of a global batch on each device, as in `ContinualConfig.set_batch` but without devices."""
    if num_processes < 1:
        raise PlasticityError(f"num_processes: {num_processes} is not a positive number")
    batch, rest = divmod(global_batch_tokens, context_length)
    if rest or not batch:
        raise PlasticityError(
            f"global_batch_tokens: {global_batch_tokens} is not a multiple of context_length {context_length}"
        )
    share, rest = divmod(batch, num_processes)
    if rest:
        raise PlasticityError(
            f"global_batch_tokens: its {batch} sequences do not divide among {num_processes} processes"
        )
    if share % (micro_batch_size or share):
        raise PlasticityError(
            f"per_device_train_batch_size: {micro_batch_size} does not divide the {share} sequences that each of "
            f"{num_processes} processes has of a global batch"
        )
    return share


def _memory(
    *,
    d_model: int,
    layers: int,
    vocab_size: int,
    context_length: int,
    parameters: int,
    adapters: int,
    probing: bool,
    num_processes: int,
    sharding: str,
    micro_batch_size: int,
    bf16: bool,
    gradient_checkpointing: bool,
    fused_head_bytes: int | None,
) -> Memory:
    sharded = sharding == "fsdp2"
    held = math.ceil(parameters / num_processes) if sharded else parameters
    block, outside = 12 * d_model**2 + 13 * d_model, (vocab_size + context_length + 2) * d_model
    matrices = 12 * layers * d_model**2 + vocab_size * d_model
    tokens = micro_batch_size * context_length
    per_block = (36 if bf16 else 64) * d_model
    kept = layers * FLOAT32 * d_model + per_block if gradient_checkpointing else layers * per_block
    parts = {
        "parameters": FLOAT32 * held,
        "gradients": FLOAT32 * held,
        "adam": ADAM * held,
        "buckets": FLOAT32 * parameters if num_processes > 1 and not sharded else 0,
        "gathered": (BFLOAT16 if bf16 else FLOAT32) * (2 * outside + 3 * block) if sharded else 0,
        "weight_copies": BFLOAT16 * matrices if bf16 and not sharded else 0,
        "activations": tokens * kept,
        "logits": tokens * vocab_size * LOSS_BYTES if fused_head_bytes is None else fused_head_bytes,
    }
    training = sum(parts.values())
    if not probing:
        snapshot = adam = probe = 0
    elif adapters:
        snapshot, adam = 0, ADAM * adapters
        probe = training - parts["gradients"] + 2 * FLOAT32 * adapters + adam
    else:
        snapshot, adam = FLOAT32 * held, ADAM * held
        probe = training + snapshot + adam
    return Memory(**parts, probe_snapshot=snapshot, probe_adam=adam, training=training, probe=probe)


def _checkpoints_at_once(steps: int, save_steps: int | None, cycles: int, limit: int | None) -> int:
    """The largest number of checkpoints for resuming at any time. Old ones are deleted when a new one is complete."""
    if save_steps is None:
        return 0
    # Every cycle ends with one, too.
    written = steps // save_steps + cycles - steps // math.lcm(save_steps, steps // cycles)
    return written if limit is None else min(written, limit + 1)
