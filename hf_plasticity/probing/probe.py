"""The probe: train a copy of the model on the probe language, measure its validation loss, and discard the copy."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._dynamo import OptimizedModule
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from ..data.token_blocks import TokenBlocks, as_blocks
from ..distributed import rank_and_world_size
from ..errors import PlasticityError
from ..learning_rate import learning_rate_shape
from ..network import is_fsdp, preserve_model, reshard
from .checks import check_model, unwrapped, without_compilation
from .config import ProbeConfig
from .evaluation import to_device, validation_loss
from .result import ProbeResult


class ProbeDivergedError(FloatingPointError):
    """The loss of a probe is NaN or infinite."""


def run_probe(
    model: nn.Module,
    train_blocks: TokenBlocks,
    eval_blocks: TokenBlocks,
    config: ProbeConfig,
    micro_batch_size: int | None = None,
    largest_micro_batch_size: int | None = None,
    bytes_per_token: float | None = None,
    description: str = "probe",
    show_progress: bool = True,
    before_step: Callable[[], None] | None = None,
) -> ProbeResult:
    """
    Measure how fast a model adapts to the text in `train_blocks`, and restore the model bit for bit.

    The probe works in place on the model, plain or wrapped by DDP, FSDP2 or `torch.compile`, on every process that
    shares it. It requires memory for one more copy of the parameters and one AdamW state, and calls the model as
    training does, with the same mixed precision.

    Args:
        model (`nn.Module`): A causal language model that takes `input_ids` and `labels` and returns their loss.
        train_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Training token ids.
        eval_blocks ([`Blocks`], `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`):
            Validation token ids; the first `config.eval_sequences` are used.
        config ([`ProbeConfig`]): The settings of the probe.
        micro_batch_size (`int`, *optional*): Sequences in one forward pass on one process; it affects memory, not
            results. By default the whole share of this process.
        largest_micro_batch_size (`int`, *optional*): Alternatively, an upper limit; the largest divisor of the share
            up to this limit is used.
        bytes_per_token (`float`, *optional*): Bytes per token of the validation text, for `bits_per_byte`.
        description (`str`, *optional*, defaults to `"probe"`): Label of the progress bar.
        show_progress (`bool`, *optional*, defaults to `True`): Whether the main process shows a progress bar.
        before_step (`Callable[[], None]`, *optional*): Called before each step; raises to abort the probe.

    Returns:
        [`ProbeResult`]: The same on every process.

    Raises:
        [`PlasticityError`]: A model that cannot be probed (see [`check_model`]), too few blocks, or a batch that does
            not divide among processes and micro-batches.
        [`ProbeDivergedError`]: A loss is not finite.

    Example:

    ```python
    >>> result = run_probe(model, train_blocks, eval_blocks, ProbeConfig(steps=200, eval_every=20, batch_size=16))
    >>> result.auc
    ```
    """
    started = time.perf_counter()
    share = _Share(
        train_blocks,
        eval_blocks,
        config,
        micro_batch_size,
        largest_micro_batch_size,
        next(model.parameters()).device,
    )
    check_model(model, share.train_blocks, share.eval_blocks, config)
    curves = []
    for repeat in range(config.repeats):
        label = description if config.repeats == 1 else f"{description}, {repeat + 1} of {config.repeats}"
        with preserve_model(model, parameters=config.adaptation == "full"):
            torch.manual_seed(config.seed + repeat)
            with (
                _adapters(model, config) as adapting,
                tqdm(total=config.steps, desc=label, leave=False, disable=not show_progress or share.rank > 0) as bar,
            ):
                curves.append(_adapt(adapting, share, config, config.seed + repeat, bar, before_step))
    return ProbeResult(
        probe_steps=config.evaluation_steps(),
        curves=curves,
        seconds=time.perf_counter() - started,
        bytes_per_token=bytes_per_token,
    )


def check_probe(
    model: nn.Module,
    train_blocks: TokenBlocks,
    eval_blocks: TokenBlocks,
    config: ProbeConfig,
    micro_batch_size: int | None = None,
) -> None:
    """
    Check before training that its probes can run.

    Raises:
        [`PlasticityError`]: The model cannot be probed (see [`check_model`]), there are too few blocks, or the batch
            does not divide.
    """
    share = _Share(train_blocks, eval_blocks, config, micro_batch_size, None, next(model.parameters()).device)
    check_model(model, share.train_blocks, share.eval_blocks, config)


def check_text(train_blocks: TokenBlocks, eval_blocks: TokenBlocks, config: ProbeConfig) -> int:
    """
    Check that there is enough text for a probe. Blocks that are prepared on demand are prepared.

    Returns:
        `int`: The number of training blocks.

    Raises:
        [`PlasticityError`]: There is too little text.
    """
    wanted = config.steps * config.batch_size
    available = _number_of_blocks(train_blocks, wanted)
    if available < wanted and not (config.allow_repeats and available):
        raise PlasticityError(
            f"probe_steps: {config.steps} steps require {wanted:,} training sequences and there are {available:,}; "
            "give the probe language more text, shorten the probe, or set allow_repeats"
        )
    held_out = _number_of_blocks(eval_blocks, config.eval_sequences)
    if held_out < config.eval_sequences:
        raise PlasticityError(
            f"probe_eval_sequences: {config.eval_sequences} are requested and the validation split of the probe "
            f"language has {held_out}; give it more text, or request fewer"
        )
    return available


class _Share:
    """The part of every batch that this process trains on, in micro-batches."""

    def __init__(
        self,
        train_blocks,
        eval_blocks,
        config: ProbeConfig,
        micro_batch_size: int | None,
        largest_micro_batch_size: int | None,
        device,
    ):
        self.rank, self.world = rank_and_world_size()
        self.train_blocks, self.eval_blocks = as_blocks(train_blocks), as_blocks(eval_blocks)
        self.config, self.device = config, device
        self.size, rest = divmod(config.batch_size, self.world)
        if rest or not self.size:
            raise PlasticityError(
                f"probe_batch_size: {config.batch_size} sequences do not divide among {self.world} processes"
            )
        if micro_batch_size is not None and micro_batch_size < 1:
            raise PlasticityError(f"micro_batch_size: {micro_batch_size} is not a positive number")
        most = largest_micro_batch_size or self.size
        largest = max(size for size in range(1, self.size + 1) if self.size % size == 0 and size <= most)
        self.micro_batch_size = min(micro_batch_size or largest, self.size)
        if self.size % self.micro_batch_size:
            raise PlasticityError(
                f"micro_batch_size: {self.micro_batch_size} does not divide the {self.size} sequences that each of "
                f"{self.world} processes has of a probe batch"
            )
        self.wanted = config.steps * config.batch_size
        self.available = check_text(self.train_blocks, self.eval_blocks, config)

    def order(self, seed: int) -> np.ndarray:
        """Training sequences in the order of a probe, over all processes: `(steps * batch_size,)`."""
        return np.random.default_rng(seed).permutation(self.wanted) % self.available

    def training(self, order: np.ndarray, step: int) -> Iterator[torch.Tensor]:
        """The micro-batches of one optimizer step, each `(micro_batch_size, context_length)`."""
        start = step * self.config.batch_size + self.rank * self.size
        for first in range(start, start + self.size, self.micro_batch_size):
            yield to_device(self.train_blocks[order[first : first + self.micro_batch_size]], self.device)


def _number_of_blocks(blocks: TokenBlocks, wanted: int) -> int:
    """The number of blocks, after preparing as many as are requested."""
    if not isinstance(blocks, np.ndarray | torch.Tensor):
        blocks.prepare(wanted)
    return len(blocks)


@contextlib.contextmanager
def _adapters(model: nn.Module, config: ProbeConfig) -> Iterator[nn.Module]:
    """The model to train, with low-rank adapters in it during a LoRA probe."""
    if config.adaptation == "full":
        yield model
        return
    if isinstance(model, OptimizedModule) and isinstance(model, FSDPModule):
        raise PlasticityError(
            "probe_adaptation: 'lora' is not supported with torch_compile and FSDP2 together; use 'full', or train "
            "without torch_compile"
        )
    base = unwrapped(model)
    hooks = base.get_input_embeddings()._forward_hooks
    known = set(hooks)
    adapted = get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules=config.lora_target_modules,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        ),
    )
    try:
        yield adapted
    finally:
        reshard(base)
        adapted.unload()
        for hook in set(hooks) - known:  # under gradient checkpointing, PEFT adds one that it never removes
            del hooks[hook]


def _adapt(
    model: nn.Module,
    share: _Share,
    config: ProbeConfig,
    seed: int,
    bar: tqdm,
    before_step: Callable[[], None] | None,
) -> list[float]:
    """Train on the probe language and return the validation loss at every evaluation step."""
    shape = learning_rate_shape(
        config.lr_scheduler_type, config.learning_rate, config.steps, config.warmup_steps, config.lr_scheduler_kwargs
    )
    optimizer = _optimizer(model, config)
    # Listed once, because iterating over the modules takes a few per cent of a step of the smallest models.
    parameters, sharded = [*model.parameters()], is_fsdp(model)
    order = share.order(seed)
    evaluation_steps = set(config.evaluation_steps())
    losses = []
    for step in range(config.steps + 1):
        if before_step is not None:
            before_step()
        if step in evaluation_steps:
            losses.append(validation_loss(model, share.eval_blocks, config.eval_sequences, share.micro_batch_size))
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            if not math.isfinite(losses[-1]):
                raise ProbeDivergedError(
                    f"the probe's validation loss is {losses[-1]} after {step} probe steps; lower its learning rate"
                )
            model.train()
        if step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * shape(step)
            _training_step(model, parameters, sharded, optimizer, share.training(order, step), share, config)
            bar.update()
    return losses


def _optimizer(model: nn.Module, config: ProbeConfig) -> torch.optim.AdamW:
    """AdamW on the trainable parameters, with the weight decay of the Trainer."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [trainable[name] for name in trainable if name in decaying], "weight_decay": config.weight_decay},
        {"params": [trainable[name] for name in trainable if name not in decaying], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def _training_step(
    model: nn.Module,
    parameters: list[nn.Parameter],
    sharded: bool,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterator[torch.Tensor],
    share: _Share,
    config: ProbeConfig,
) -> None:
    # Without DDP's averaging: otherwise DDP would rebuild its buckets after the first step of the probe instead of the
    # first step of training. With three or more processes, this changes the order in which the gradients of training
    # are summed (seen in torch 2.13.0).
    wrapper = without_compilation(model)
    unaveraged = wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else contextlib.nullcontext()
    with unaveraged:
        for input_ids in micro_batches:
            loss = model(input_ids=input_ids, labels=input_ids).loss
            (loss * (len(input_ids) / share.size)).backward()
    trainable = [parameter for parameter in parameters if parameter.grad is not None]
    if share.world > 1:
        for parameter in trainable:
            if not isinstance(parameter.grad, DTensor):
                dist.all_reduce(parameter.grad)
                parameter.grad /= share.world
    if config.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
    if sharded:
        reshard(model)
    optimizer.step()
    optimizer.zero_grad()
