"""The training throughput of this device, measured with a few micro-batches and optimizer steps."""

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import GPT2LMHeadModel

from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..models import gpt2_config
from ..network import enable_activation_checkpointing
from ..network.head_loss import use_head_loss
from ..threads import choose_threads, set_threads
from .arithmetic import ADAM, FLOAT32


REPEATS = 3


def measure_throughput(
    study: ExperimentConfig, plan: dict[str, Any], vocab_size: int, head_loss: str
) -> tuple[float, str]:
    """
    Train on random tokens. Micro-batches of the plan's size and optimizer steps are timed separately; the time of a
    step of the run is that of its accumulated micro-batches and one optimizer step. Communication is not included.

    Args:
        study ([`ExperimentConfig`]): The run.
        plan (`dict[str, Any]`): Its plan, of [`plan_run`].
        vocab_size (`int`): Rows of the embedding.
        head_loss (`str`): `"logits"` or `"fused"`.

    Returns:
        `tuple[float, str]`: Tokens per second on one device, and the name of the device.

    Raises:
        [`PlasticityError`]: A micro-batch does not fit into free memory.
    """
    training, length = study.training, study.data.context_length
    device = torch.device("cuda" if torch.cuda.is_available() and not training.use_cpu else "cpu")
    if device.type == "cpu":
        set_threads(choose_threads(training.cpu_threads, recorded=None))
    _check_memory(plan, device)
    model = GPT2LMHeadModel(gpt2_config(study.model.size, vocab_size, length)).to(device)
    use_head_loss(model, head_loss, device)
    if training.gradient_checkpointing:
        enable_activation_checkpointing(model, training.gradient_checkpointing_kwargs)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    input_ids = torch.randint(vocab_size, (plan["micro_batch_size"], length), device=device)

    def micro_batch() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()

    def optimizer_step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    accumulated = plan["gradient_accumulation_steps"]
    seconds = accumulated * _timed(micro_batch, device) + _timed(optimizer_step, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return accumulated * input_ids.numel() / seconds, name


def _check_memory(plan: dict[str, Any], device: torch.device) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    # The whole model, even if the run shards it.
    needed = (2 * FLOAT32 + ADAM) * plan["parameters"] + plan["memory"]["activations"] + plan["memory"]["logits"]
    if needed > free:
        raise PlasticityError(
            f"per_device_train_batch_size: a micro-batch of {plan['micro_batch_size']} requires {needed / 1e9:,.1f} "
            f"GB to measure and {free / 1e9:,.1f} GB are free here; choose a smaller one, or give tokens_per_second"
        )


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few repetitions, after a warmup."""
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
