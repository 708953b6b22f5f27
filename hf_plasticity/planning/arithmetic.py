"""
The cost of a run, computed from its settings.

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
"""

import math
from collections.abc import Sequence
from typing import Any

from ..analysis.law import PAPER_LAW
from ..batch import divide_batch
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..experiment.data import run_schedule
from ..models import ModelSize, model_size
from ..network.head_loss import LOGITS, head_loss_bytes
from ..periodic import Timeline
from ..trainer.config import DEFERRED
from .text import Text


FLOAT32 = 4
BFLOAT16 = 2
ADAM = 2 * FLOAT32
FSDP2 = "fsdp2"
SHARDINGS = ("none", FSDP2)


def plan_run(
    study: ExperimentConfig,
    vocab_size: int,
    *,
    num_processes: int = 1,
    sharding: str = "none",
    head_loss: str = LOGITS,
    tokens_per_second: float | None = None,
    text: Sequence[Text] = (),
) -> dict[str, Any]:
    """
    Compute the cost of a run.

    Args:
        study ([`ExperimentConfig`]): The settings of the run.
        vocab_size (`int`): Rows of the embedding.
        num_processes (`int`, *optional*, defaults to 1): Devices.
        sharding (`str`, *optional*, defaults to `"none"`): `"none"` (one device, or DDP) or `"fsdp2"`.
        head_loss (`str`, *optional*, defaults to `"logits"`): `"logits"` or `"fused"`.
        tokens_per_second (`float`, *optional*): Training throughput over all devices.
        text (`Sequence[Text]`, *optional*): The text that the run requires, for the disk.

    Returns:
        `dict[str, Any]`:
        - `non_embedding_parameters` and `parameters` (with token and position embeddings; the head is tied),
        - `tasks_per_cycle`, `tasks` (task instances), `steps` and `tokens` of training,
        - `probes`: points at which the model is probed, the untrained one among them, and `probe_repeats` at each,
        - `num_processes`, `micro_batch_size` (of one device), `gradient_accumulation_steps`,
        - `compute`: FLOPs to train on a token (`per_token`), the shares of it in the output head (`head_share`) and
          in attention scores (`attention_share`), FLOPs of `training`, of all `probes` with their evaluations and of
          `forgetting` (evaluate_forgetting), and `probe_share` of their sum,
        - `seconds`: `tokens_per_second`, and the time of `training`, `probes` and `forgetting` by their FLOPs; `None`
          without a throughput,
        - `memory`: peak bytes on each device, see `run_memory`,
        - `disk`: bytes of `checkpoints` for resuming (weights and Adam state, as many as are kept and the one being
          written), of `probed_checkpoints` (weights), of the prepared `blocks`, and on the `hub` if the run is pushed,
        - `onset` by the paper's law: the `task` instance, in `cycle`s of this run and in `tokens`, whether the run is
          that long (`reached_by_tasks`, `reached_by_tokens`), and whether the model is smaller or larger than those of
          the paper (`extrapolated`).

    Raises:
        [`PlasticityError`]: A batch that does not divide, or an unknown sharding.

    Example:

    ```python
    >>> from hf_plasticity.experiment import parse_experiment
    >>> from hf_plasticity.planning.arithmetic import plan_run

    >>> plan = plan_run(parse_experiment(["--config", "paper", "--use_cpu"]), vocab_size=151_680)
    >>> f"{plan['tokens']:.2e} tokens, {plan['compute']['training']:.1e} FLOPs"
    '1.92e+12 tokens, 6.8e+20 FLOPs'
    ```
    """
    if sharding not in SHARDINGS:
        raise PlasticityError(f"sharding: '{sharding}' is unknown; choose one of {', '.join(SHARDINGS)}")
    for name, value in (("num_processes", num_processes), ("tokens_per_second", tokens_per_second)):
        if value is not None and not 0 < value < math.inf:
            raise PlasticityError(f"{name}: {value} is not a positive number")
    training, length, size = study.training, study.data.context_length, model_size(study.model.size)
    _, micro_batch_size, accumulation_steps = divide_batch(
        training.global_batch_tokens, length, num_processes, training.micro_batch_size
    )
    parameters = size.num_non_embedding_parameters + (vocab_size + length) * size.d_model
    tasks_per_cycle = run_schedule(study, batch_size=1).tasks_per_cycle
    tasks = training.cycles * tasks_per_cycle
    steps = tasks * training.task_steps
    tokens = steps * training.global_batch_tokens
    probes = 0
    if not training.no_probe:
        every, unit = training.probe_period
        probes = 1 + (tasks if unit == "tasks" else training.cycles) // every
    compute = run_compute(study, vocab_size, tokens, probes)
    seconds = None
    if tokens_per_second is not None:
        flops_per_second = compute["per_token"] * tokens_per_second
        times = {name: compute[name] / flops_per_second for name in ("training", "probes", "forgetting")}
        seconds = {"tokens_per_second": tokens_per_second, **times}
    saved_points = probes if training.save_probe_checkpoints else 0
    onset = PAPER_LAW.predict(size.num_non_embedding_parameters)
    return {
        "non_embedding_parameters": size.num_non_embedding_parameters,
        "parameters": parameters,
        "tasks_per_cycle": tasks_per_cycle,
        "tasks": tasks,
        "steps": steps,
        "tokens": tokens,
        "probes": probes,
        "probe_repeats": training.probe_repeats,
        "num_processes": num_processes,
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "compute": compute,
        "seconds": seconds,
        "memory": run_memory(
            study, vocab_size, parameters, micro_batch_size, num_processes, sharding == FSDP2, head_loss
        ),
        "disk": {
            "checkpoints": (FLOAT32 + ADAM) * parameters * _checkpoints_at_once(study, steps),
            "probed_checkpoints": saved_points * FLOAT32 * parameters,
            "blocks": sum(one["bytes_on_disk"] for one in text),
            "hub": (saved_points + 1) * FLOAT32 * parameters,
        },
        "onset": {
            "task": onset.task,
            "cycle": onset.task / tasks_per_cycle,
            "tokens": onset.tokens,
            "reached_by_tasks": tasks >= onset.task,
            "reached_by_tokens": tokens >= onset.tokens,
            "extrapolated": not 4.9e6 < size.num_non_embedding_parameters < 3.2e8,
        },
    }


def forward_flops(size: ModelSize, vocab_size: int, context_length: int) -> tuple[int, int, int]:
    """FLOPs of the forward pass of a token: weight matrices of the blocks, attention scores, and head."""
    width = size.d_model
    return 24 * size.layers * width**2, 4 * size.layers * width * context_length, 2 * width * vocab_size


def run_compute(study: ExperimentConfig, vocab_size: int, tokens: int, probes: int) -> dict[str, Any]:
    """FLOPs of a run of so many training tokens and probed points, as in [`plan_run`]."""
    training, length, size = study.training, study.data.context_length, model_size(study.model.size)
    matrices, attention, head = forward_flops(size, vocab_size, length)
    forward = matrices + attention + head
    recomputed = matrices + attention if training.gradient_checkpointing else 0
    probe_per_token = per_token = 3 * forward + recomputed
    if adapters := _adapter_parameters(study):
        # Frozen matrices need no gradients of their own, only those of their inputs; scores have no weights.
        probe_per_token += 6 * adapters - matrices - head
    evaluation = training.probe_eval_sequences * length * forward
    probe_config = training.probe_config(training.global_batch_tokens // length)
    evaluations = len(probe_config.evaluation_steps())
    probe = probe_config.steps * probe_config.batch_size * length * probe_per_token + evaluations * evaluation
    evaluated = len(run_schedule(study, batch_size=1).languages) if training.evaluate_forgetting else 0
    flops = {
        "training": tokens * per_token,
        "probes": probes * training.probe_repeats * probe,
        "forgetting": training.cycles * evaluated * evaluation,
    }
    return {
        "per_token": per_token,
        "head_share": 3 * head / per_token,
        "attention_share": (4 if recomputed else 3) * attention / per_token,
        **flops,
        "probe_share": flops["probes"] / sum(flops.values()),
    }


def _adapter_parameters(study: ExperimentConfig) -> int:
    """Trained by a LoRA probe on every projection of a block: 16·d for each rank; 0 for another probe."""
    size, rank = model_size(study.model.size), study.training.probe_lora_rank
    return 16 * size.layers * rank * size.d_model if study.training.probe_adaptation == "lora" else 0


def run_memory(
    study: ExperimentConfig,
    vocab_size: int,
    parameters: int,
    micro_batch_size: int,
    num_processes: int,
    sharded: bool,
    head_loss: str,
) -> dict[str, int]:
    """
    Peak bytes on each device; `activations`, `logits` and `gathered` are estimates.

    Returns:
        `dict[str, int]`:
        - `parameters`, `gradients`, `adam`: this device's share, in float32,
        - `buckets`: DDP's second copy of the gradients,
        - `gathered`: parameters and gradients that FSDP2 gathers at the same time: embeddings and final norm, two
          blocks, and the gradients of one,
        - `weight_copies`: the bfloat16 copies of the weight matrices that autocast keeps for the backward pass,
        - `activations`: of a micro-batch, kept for the backward pass,
        - `logits`: the loss of a micro-batch over the vocabulary, whole or fused,
        - `probe_snapshot`, `probe_adam`: a probe's copy of the parameters and its Adam state; 0 with deferred probes,
        - `training`, `probe`: the sums outside probes, and in a probe, where the Adam state of the training stays.
    """
    training, length, size = study.training, study.data.context_length, model_size(study.model.size)
    width, layers, bf16 = size.d_model, size.layers, training.bf16
    held = math.ceil(parameters / num_processes) if sharded else parameters
    block, outside = 12 * width**2 + 13 * width, (vocab_size + length + 2) * width
    matrices = 12 * layers * width**2 + vocab_size * width
    tokens = micro_batch_size * length
    per_block = (36 if bf16 else 64) * width
    kept = layers * FLOAT32 * width + per_block if training.gradient_checkpointing else layers * per_block
    parts = {
        "parameters": FLOAT32 * held,
        "gradients": FLOAT32 * held,
        "adam": ADAM * held,
        "buckets": FLOAT32 * held if num_processes > 1 and not sharded else 0,
        "gathered": (BFLOAT16 if bf16 else FLOAT32) * (2 * outside + 3 * block) if sharded else 0,
        "weight_copies": BFLOAT16 * matrices if bf16 and not sharded else 0,
        "activations": tokens * kept,
        "logits": head_loss_bytes(head_loss, tokens, vocab_size, width, bf16),
    }
    in_training = sum(parts.values())
    if training.no_probe or training.probe == DEFERRED:
        snapshot = adam = in_probe = 0
    elif adapters := _adapter_parameters(study):
        snapshot, adam = 0, ADAM * adapters
        in_probe = in_training - parts["gradients"] + 2 * FLOAT32 * adapters + adam
    else:
        snapshot, adam = parts["parameters"], parts["adam"]
        in_probe = in_training + snapshot + adam
    return parts | {"probe_snapshot": snapshot, "probe_adam": adam, "training": in_training, "probe": in_probe}


def _checkpoints_at_once(study: ExperimentConfig, steps: int) -> int:
    """The largest number of checkpoints for resuming at any time. Old ones are deleted when a new one is complete."""
    training = study.training
    if training.save_strategy == "no":
        return 0
    # There is one at every probe and at the end of every cycle, too.
    cycle_steps = steps // training.cycles
    timeline = Timeline(training.task_steps, cycle_steps // training.task_steps)
    periods = (int(training.save_steps), cycle_steps, timeline.steps_between(*training.probe_period))
    written = len({step for period in periods for step in range(period, steps + 1, period)})
    return min(written, training.save_total_limit + 1) if training.save_total_limit else written
