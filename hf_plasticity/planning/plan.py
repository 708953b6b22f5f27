"""The estimates of a plan."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compute:
    """
    FLOPs.

    Args:
        per_token (`int`): To train on one token.
        head_share (`float`): Share of `per_token` in the output head.
        attention_share (`float`): Share of `per_token` in the attention scores.
        training (`int`): Of the training steps.
        probes (`int`): Of all probes, their evaluations included.
        forgetting (`int`): Of `evaluate_forgetting`.
        probe_share (`float`): Share of the total in probes.
    """

    per_token: int
    head_share: float
    attention_share: float
    training: int
    probes: int
    forgetting: int
    probe_share: float

    @property
    def total(self) -> int:
        return self.training + self.probes + self.forgetting


@dataclass(frozen=True)
class Seconds:
    """Time at `tokens_per_second` of training over all devices; probes and evaluations by their FLOPs."""

    tokens_per_second: float
    training: float
    probes: float
    forgetting: float

    @property
    def total(self) -> float:
        return self.training + self.probes + self.forgetting


@dataclass(frozen=True)
class Memory:
    """
    Peak bytes on each device; `activations`, `logits` and `gathered` are estimates.

    Args:
        parameters, gradients, adam (`int`): This device's share, in float32.
        buckets (`int`): DDP's second copy of the gradients.
        gathered (`int`): FSDP2: parameters and gradients that are gathered at the same time: embeddings and final
            norm, two blocks, and the gradients of one.
        weight_copies (`int`): The bfloat16 copies of the weight matrices that autocast keeps for the backward pass.
        activations (`int`): Of a micro-batch, kept for the backward pass.
        logits (`int`): The loss of a micro-batch over the vocabulary, whole or fused.
        probe_snapshot, probe_adam (`int`): The copy of the parameters and the Adam state of a probe.
        training (`int`): Sum outside probes.
        probe (`int`): Sum in a probe. The Adam state of the training is in memory too.
    """

    parameters: int
    gradients: int
    adam: int
    buckets: int
    gathered: int
    weight_copies: int
    activations: int
    logits: int
    probe_snapshot: int
    probe_adam: int
    training: int
    probe: int


@dataclass(frozen=True)
class Disk:
    """
    Bytes on disk, and on the Hub if the run is pushed there.

    Args:
        checkpoints (`int`): For resuming: weights and Adam state, as many as are kept and the one being written.
        probed_checkpoints (`int`): The weights of every probed model.
        blocks (`int`): The prepared text.
        hub (`int`): The probed models, a branch each, and the final one.
    """

    checkpoints: int
    probed_checkpoints: int
    blocks: int
    hub: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.probed_checkpoints + self.blocks


@dataclass(frozen=True)
class PredictedOnset:
    """
    The onset by the paper's law, which counts task instances of 5B tokens and was fitted from 5M to 314M.

    Args:
        task (`float`): In task instances.
        cycle (`float`): In cycles of this run.
        tokens (`float`): In training tokens, at 5B a task instance.
        reached_by_tasks, reached_by_tokens (`bool`): Whether the run is that long.
        extrapolated (`bool`): Whether the model is smaller or larger than those of the paper.
    """

    task: float
    cycle: float
    tokens: float
    reached_by_tasks: bool
    reached_by_tokens: bool
    extrapolated: bool


@dataclass(frozen=True)
class Plan:
    """
    The estimated cost of a run.

    Args:
        non_embedding_parameters (`int`): The P of the law.
        parameters (`int`): All, with token and position embeddings; the head is tied.
        tasks_per_cycle, tasks, steps, tokens (`int`): Length of the run.
        probes (`int`): Points at which the model is probed, the untrained one among them; 0 without probes.
        probe_repeats (`int`): Probes at each point.
        num_processes (`int`): Devices.
        micro_batch_size (`int`): Sequences in one forward on one device.
        gradient_accumulation_steps (`int`): Micro-batches of a device in an optimizer step.
        compute ([`Compute`]): FLOPs.
        seconds ([`Seconds`], *optional*): Time; `None` where no throughput was given.
        memory ([`Memory`]): Bytes on each device.
        disk ([`Disk`]): Bytes on disk.
        onset ([`PredictedOnset`]): The onset by the paper's law.
    """

    non_embedding_parameters: int
    parameters: int
    tasks_per_cycle: int
    tasks: int
    steps: int
    tokens: int
    probes: int
    probe_repeats: int
    num_processes: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    compute: Compute
    seconds: Seconds | None
    memory: Memory
    disk: Disk
    onset: PredictedOnset
