"""The training throughput of this device, measured with a few micro-batches and optimizer steps."""

import time
from collections.abc import Callable

import psutil
import torch
from transformers import GPT2LMHeadModel

from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig
from ..models import gpt2_config
from ..network.head_loss import LOGITS, use_head_loss
from ..threads import choose_threads, set_threads
from .arithmetic import ADAM, FLOAT32
from .plan import Plan


REPEATS = 3


def measure_throughput(
    study: ExperimentConfig, vocab_size: int, plan: Plan, head_loss: str = LOGITS
) -> tuple[float, str]:
    """
    Train on random tokens. Micro-batches of the plan's size and optimizer steps are timed separately; the time of a
    step of the run is that of its accumulated micro-batches and one optimizer step. Communication is not included.

    Args:
        study ([`ExperimentConfig`]): Model and precision.
        vocab_size (`int`): Rows of the embedding.
        plan ([`Plan`]): Size of the micro-batches.
        head_loss (`str`, *optional*, defaults to `"logits"`): `"logits"` or `"fused"`.

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
    model.loss_type = "ForCausalLM"
    use_head_loss(model, head_loss, device)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    input_ids = torch.randint(vocab_size, (plan.micro_batch_size, length), device=device)

    def micro_batch() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()

    def optimizer_step() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    seconds = plan.gradient_accumulation_steps * _timed(micro_batch, device) + _timed(optimizer_step, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return plan.gradient_accumulation_steps * plan.micro_batch_size * length / seconds, name


def _check_memory(plan: Plan, device: torch.device) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    # The whole model, even if the run shards it.
    needed = (2 * FLOAT32 + ADAM) * plan.parameters + plan.memory.activations + plan.memory.logits
    if needed > free:
        raise PlasticityError(
            f"per_device_train_batch_size: a micro-batch of {plan.micro_batch_size} requires {needed / 1e9:,.1f} GB "
            f"to measure and {free / 1e9:,.1f} GB are free here; choose a smaller one, or give tokens_per_second"
        )


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few repetitions, after a warmup."""
    best = float("inf")
    for go in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if go:
            best = min(best, time.perf_counter() - started)
    return best
