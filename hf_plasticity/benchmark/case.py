"""The case that one process of the benchmark measures."""

from dataclasses import dataclass, replace
from typing import Any

from ..models import model_size
from ..planning.arithmetic import forward_flops


MICRO_VOCABULARY = 257
PAPER_VOCABULARY = 151_680
PAPER_CONTEXT = 2_048


@dataclass(frozen=True)
class Case:
    """
    One contender on one model. Times are measured in windows of a few optimizer steps, or of one call.

    Args:
        contender (`str`): A name of `contenders.CONTENDERS`.
        size (`str`): A name of `MODEL_SIZES`. vocab_size, context_length, batch_size (`int`): Of the model and of a
        micro-batch; an optimizer step has one micro-batch. bf16, compiled (`bool`): As in `TrainingArguments`.
        head_loss (`str`): `"logits"` or `"fused"`.
        window (`int`): Optimizer steps between two readings.
        windows (`int`): The number of readings.
        warmup (`int`): Optimizer steps before the first of them.
        device (`str`): `"cpu"` or `"cuda"`.
        threads (`int`): Threads of torch on the CPU; 0 for the default of torch.
        processes (`int`): Processes that train together.
        backend (`str`): Backend of `torch.compile`.
        shrinks (`bool`): Whether a batch that does not fit in memory is halved until it does.
        compile_only (`bool`): Whether to only fill the cache of `torch.compile`, without a measurement.
        memory_gb (`float`): Limit on the memory of the GPU, in GB (10⁹ bytes); 0 for none.
        options (`tuple[tuple[str, Any], ...]`): Further options of the contender.
    """

    contender: str
    size: str
    vocab_size: int = MICRO_VOCABULARY
    context_length: int = 128
    batch_size: int = 16
    bf16: bool = False
    compiled: bool = False
    head_loss: str = "logits"
    window: int = 10
    windows: int = 5
    warmup: int = 10
    device: str = "cpu"
    threads: int = 0
    processes: int = 1
    backend: str = "inductor"
    shrinks: bool = False
    compile_only: bool = False
    memory_gb: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in an optimizer step of all processes."""
        return self.batch_size * self.context_length

    @property
    def steps(self) -> int:
        """Optimizer steps from the beginning to the last reading."""
        return self.warmup + self.window * self.windows

    @property
    def flops_per_token(self) -> int:
        """FLOPs to train on a token, as `hf-plasticity plan` counts them."""
        return 3 * sum(forward_flops(model_size(self.size), self.vocab_size, self.context_length))

    def option(self, name: str) -> Any:
        """A further option of the contender, by name."""
        return dict(self.options)[name]

    def but(self, **changes: Any) -> "Case":
        """This case with other values."""
        return replace(self, **changes)
