"""The base class of mitigations: arguments, hooks in the training step, state and events."""

import contextlib
import dataclasses
import hashlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..distributed import rank_and_world_size
from ..errors import PlasticityError
from ..network import (
    InitialDistribution,
    is_fsdp,
    local,
    non_embedding_parameters,
    optimizer_moments,
    preserve_with,
    reshard,
)
from .adam import EntrySteps
from .search import Search


def argument(default: Any, help: str, source: str, search: Search | None = None) -> Any:
    """
    An argument of a mitigation.

    Args:
        default (`Any`): Its default.
        help (`str`): One line, with the symbol of the paper.
        source (`str`): Where the default comes from; `"chosen here"` if no source has one.
        search ([`Search`], *optional*): The values that `hf-plasticity compare` tries; by default it leaves the
            argument unchanged.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source, "search": search})


@dataclass(eq=False, kw_only=True)
class Mitigation:
    """
    A mitigation of plasticity loss. A training loop calls `attach` once and, in every optimizer step, the methods
    below. [`MitigationCallback`] does so in a `Trainer`.

    ```python
    mitigation.attach(model, optimizer, seed=0, task_steps=1000)
    for step in range(1, steps + 1):
        loss_of(batch).backward()
        mitigation.before_step(step)  # gradients are complete
        optimizer.step()
        mitigation.after_step(step)  # the learning rate is still that of this step
        scheduler.step()
        optimizer.zero_grad()
        mitigation.step_end(step)
        if step % 1000 == 0:
            mitigation.task_end(step)
    ```

    With several processes, every process must make the same calls. Random numbers depend only on (seed, step,
    parameter name). Inside [`preserve_model`], and therefore in probes and diagnoses, a mitigation is inactive.

    A new mitigation is a file with a dataclass that inherits from this class and overrides some of `start`,
    `before_step`, `after_step`, `step_end`, `task_end`, `state` and `load_state`, and its line in
    `mitigations/methods.py`. Its fields are its arguments, declared with [`argument`].
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    # The mitigation for which it is a control, and whose arguments it uses in a comparison.
    control_of: ClassVar[str | None] = None
    # Whether it acts at the end of task instances; a training without them is then an error.
    requires_tasks: ClassVar[bool] = False
    # Whether it requires float32 weights, because its small steps would be lost to the rounding of bf16.
    requires_float32: ClassVar[bool] = False
    # Whether it changes the weight decay of the optimizer, which only one mitigation can.
    replaces_weight_decay: ClassVar[bool] = False
    # Whether it resets moments of the optimizer, which must have a number for each weight.
    resets_moments: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # Measures the loss on the batch of the step, for the records of events; `MitigationCallback` sets it.
        self.measure_loss: Callable[[], float | None] | None = None
        for one in dataclasses.fields(self):
            self._check_type(one)
        self.check()

    def check(self) -> None:
        """
        Check the values of the arguments.

        Raises:
            [`PlasticityError`]: One is invalid.
        """

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, with every default."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def summary(cls) -> str:
        """The first line of its docstring."""
        return inspect.getdoc(cls).split("\n\n")[0].replace("\n", " ")

    # Hooks of the training

    def attach(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int = 0,
        task_steps: int | None = None,
    ) -> None:
        """
        Begin to act on a model. Call it before the first forward pass, because a model that `torch.compile` has
        already compiled ignores new hooks.

        Args:
            model (`PreTrainedModel`): Plain or sharded by FSDP2; the module inside DDP and `torch.compile`.
            optimizer (`torch.optim.Optimizer`): The optimizer of the model, plain or wrapped by Accelerate.
            seed (`int`, *optional*, defaults to 0): Of the random numbers.
            task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.

        Raises:
            [`PlasticityError`]: The mitigation does not apply to this model, optimizer or training.
        """
        self.detach()
        if not isinstance(model, PreTrainedModel):
            raise PlasticityError(
                f"model: {self.name} requires a Transformers model, not '{type(model).__name__}'; adapters on a "
                "frozen model are not supported"
            )
        if model._hf_peft_config_loaded:  # what `model.add_adapter` leaves
            raise PlasticityError(
                f"model: {self.name} does not support adapters: the weights that it changes are frozen"
            )
        if self.requires_tasks and task_steps is None:
            raise PlasticityError(f"task_steps: required by {self.name}, which acts at the end of a task instance")
        self.model, self.optimizer, self.seed, self.task_steps = model, optimizer, seed, task_steps
        self.initialization, self.entry_steps = InitialDistribution(model), EntrySteps(optimizer)
        self.total, self._since = 0, 0
        self._counts: dict[str, int] = {}
        self._events: list[dict[str, Any]] = []
        self._loss_before: float | None = None
        self._weight_decays: list[tuple[dict[str, Any], float]] = []
        reshard(model)
        self._sharded, self._parameters = is_fsdp(model), dict(model.named_parameters())
        linear = {f"{name}.weight" for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D)}
        self._matrices = [name for name in non_embedding_parameters(model) if name in linear]
        if self.requires_float32:
            self._check_float32()
        self._check_optimizer()
        self._undo = [preserve_with(model, self.paused)]
        try:
            self.start()
        except BaseException:
            self._restore()
            raise

    def detach(self) -> None:
        """Stop acting: remove every hook, and restore what was changed in the optimizer."""
        if hasattr(self, "_undo"):
            self._restore()

    def _restore(self) -> None:
        for undo in self._undo:
            undo()
        for group, weight_decay in self._weight_decays:
            group["weight_decay"] = weight_decay
        del self._undo

    def start(self) -> None:
        """Called by `attach`: check the model, register hooks, copy the required initial weights."""

    def before_step(self, step: int) -> None:
        """
        Called when the gradients of an optimizer step are complete (averaged and clipped).

        Args:
            step (`int`): The number of the optimizer step, from 1; the same in the other methods.
        """

    def after_step(self, step: int) -> None:
        """Called after `optimizer.step()`, before the learning rate changes."""
        self.entry_steps.correct(self._parameters)

    def step_end(self, step: int) -> None:
        """Called when the step is complete, before a checkpoint is saved and before a probe."""

    def task_end(self, step: int) -> None:
        """Called after `step_end` of the last step of a task instance."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which forward and backward passes do not belong to the training."""
        yield

    # State

    def state_dict(self) -> dict[str, Any]:
        """
        Everything that a resumed training requires: whole tensors on the CPU, numbers and strings, so that
        `torch.load(weights_only=True)` can read it. Under FSDP2 every process must call this.
        """
        return {
            "name": self.name,
            "arguments": self.arguments,
            "total": self.total,
            "since": self._since,
            "counts": {where: float(count) for where, count in self._counts.items()},
            "entry_steps": self.entry_steps.state(),
            "weight_decays": [weight_decay for _, weight_decay in self._weight_decays],
            "state": self.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from a state, after `attach`.

        Raises:
            [`PlasticityError`]: It is the state of another mitigation.
        """
        if state["name"] != self.name or state["arguments"] != self.arguments:
            raise PlasticityError(
                f"mitigation: the checkpoint is of {describe(state['name'], state['arguments'])} and the training "
                f"has {describe(self.name, self.arguments)}"
            )
        self.total, self._since, self._counts = state["total"], state["since"], dict(state["counts"])
        self.entry_steps.load(state["entry_steps"])
        # The optimizer of a checkpoint has the replaced weight decay.
        groups = [group for group, _ in self._weight_decays]
        self._weight_decays = list(zip(groups, state["weight_decays"]))
        self.load_state(state["state"])

    def state(self) -> dict[str, Any]:
        """The state of a subclass."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""

    # Events

    def changing(self) -> None:
        """Called before an event changes the model: measures the loss before the change."""
        if self.measure_loss is not None and self._loss_before is None:
            self._loss_before = self.measure_loss()

    def record(self, step: int, event: str, touched: dict[str, Any], **details: Any) -> None:
        """
        Record an event. Each kind has at most one event per step.

        Args:
            step (`int`): The optimizer step.
            event (`str`): What happened, such as `"reset"`.
            touched (`dict[str, Any]`): What was changed, by layer or tensor: the indices of units, or a count.
            **details: Further fields of the record.
        """
        entry = {"step": step, "mitigation": self.name, "event": event, "touched": touched} | details
        if self._loss_before is not None:
            entry |= {"loss_before": self._loss_before, "loss_after": self.measure_loss()}
            self._loss_before = None
        self._events.append(entry)
        self.total += sum(len(one) if isinstance(one, list) else int(one) for one in touched.values())

    def count(self, where: str, amount: int | torch.Tensor) -> None:
        """Add to the summary of a task instance, for actions that are too frequent for one event each."""
        self._counts[where] = self._counts.get(where, 0) + amount

    def state_bytes(self) -> int:
        """The memory of the tensors that it holds on this process, in addition to the model and the optimizer."""
        return sum(local(one).numel() * one.element_size() for one in _tensors(vars(self)))

    def take_events(self, step: int, summarize: bool) -> list[dict[str, Any]]:
        """
        The events since the last call. Every process must call this.

        Args:
            step (`int`): The optimizer step.
            summarize (`bool`): Whether to add the summary of what was counted since the last summary.

        Returns:
            `list[dict]`: Each with `step`, `mitigation`, `event`, `touched` and further fields.
        """
        if summarize and self._counts:
            touched = {where: int(count) for where, count in self._counts.items()}
            self.record(step, "summary", touched, since_step=self._since, **self.summary_details())
            self._counts = {}
        if summarize:
            self._since = step
        events, self._events = self._events, []
        return events

    def summary_details(self) -> dict[str, Any]:
        """Further fields of a summary."""
        return {}

    # Shared by subclasses

    def matrices(self) -> dict[str, nn.Parameter]:
        """
        The trained matrices of linear modules except embeddings and output head, by name, sharded as in the optimizer.
        """
        trained = self.trained()
        return {name: trained[name] for name in self._matrices if name in trained}

    def trained(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name, sharded as in the optimizer."""
        if self._sharded:
            reshard(self.model)
        return {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}

    def learning_rates(self) -> dict[int, float]:
        """The current learning rate of each parameter, by its `id`."""
        return {id(one): float(group["lr"]) for group in self.optimizer.param_groups for one in group["params"]}

    def replace_weight_decay(self, groups: Sequence[dict[str, Any]], weight_decay: float) -> None:
        """Change the weight decay of parameter groups until `detach`."""
        self._weight_decays = [(group, group["weight_decay"]) for group in groups]
        for group in groups:
            group["weight_decay"] = weight_decay

    def restart_moments(self, parameter: nn.Parameter) -> None:
        """Reset the optimizer's moments and step count of a whole parameter."""
        for moment in optimizer_moments(self.optimizer, parameter).values():
            moment.zero_()
        count = self.optimizer.state.get(parameter, {}).get("step")
        if isinstance(count, torch.Tensor):
            count.zero_()

    def generator(self, step: int, what: str) -> torch.Generator:
        """A CPU generator whose numbers depend only on the seed, the step and a name."""
        digest = hashlib.blake2b(f"{self.name}/{self.seed}/{step}/{what}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def check_matrices(self) -> None:
        """
        Raises:
            [`PlasticityError`]: There is no matrix to act on, or weights that are not matrices, such as those of
                experts, would be left out.
        """
        for name, parameter in non_embedding_parameters(self.model).items():
            if parameter.requires_grad and parameter.ndim > 2:
                raise PlasticityError(
                    f"model: '{name}' has {parameter.ndim} dimensions, and {self.name} acts on the matrices of linear "
                    "modules only; models with experts or convolutions are not supported"
                )
        self.check_trained(self.matrices())

    def check_trained(self, parameters: dict[str, nn.Parameter]) -> None:
        """
        Raises:
            [`PlasticityError`]: There is nothing to act on, or the optimizer does not update it.
        """
        if not parameters:
            raise PlasticityError(f"model: '{type(self.model).__name__}' has nothing that {self.name} acts on")
        for parameter in parameters.values():
            optimizer_moments(self.optimizer, parameter)

    def _check_optimizer(self) -> None:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        kind = type(inner).__name__
        if self.resets_moments and kind == "Adafactor":
            raise PlasticityError(
                f"optim: Adafactor has no number for each weight, and {self.name} resets those of single weights; use "
                "adamw_torch"
            )
        amsgrad = any(group.get("amsgrad") for group in inner.param_groups)
        adam = type(inner) in (torch.optim.Adam, torch.optim.AdamW) and not amsgrad
        if getattr(self, "exact_moments", False) and not adam:
            raise PlasticityError(
                f"mitigation_args: exact_moments of {self.name} requires Adam or AdamW, not "
                f"{kind}{' with amsgrad' if amsgrad else ''}"
            )

    def _check_float32(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
                kind = str(parameter.dtype).removeprefix("torch.")
                raise PlasticityError(
                    f"model: '{name}' is {kind}, and {self.name} requires float32 weights, because its small steps "
                    "would be lost to rounding; load the model in float32 and train with --bf16"
                )

    def _check_type(self, one: dataclasses.Field) -> None:
        value, kinds = getattr(self, one.name), typing.get_args(one.type) or (one.type,)
        if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
            setattr(self, one.name, value := float(value))
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            names = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise PlasticityError(f"mitigation_args: {one.name} of {self.name} is {value!r} and must be {names}")

    def require(self, satisfied: bool, name: str, right: str) -> None:
        """
        Raises:
            [`PlasticityError`]: The value of an argument is invalid; `right` describes the valid values.
        """
        if not satisfied:
            raise PlasticityError(
                f"mitigation_args: {name} of {self.name} is {getattr(self, name)!r} and must be {right}"
            )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in lists, dictionaries and objects with a list of their tensors, without parameters."""
    if isinstance(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, dict):
        yield from (one for item in value.values() for one in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (one for item in value for one in _tensors(item))
    elif hasattr(value, "tensors"):
        yield from _tensors(value.tensors())


def describe(name: str, arguments: dict[str, Any]) -> str:
    """`redo(threshold=0.025, every=1000)`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """
    Sum a tensor over the processes, in place. The sum is bit-identical on each, so that decisions based on it agree.
    """
    if rank_and_world_size()[1] > 1:
        dist.reduce(tensor, dst=0)
        dist.broadcast(tensor, src=0)
    return tensor


def sum_of_shards(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """
    Sum the values of all processes for a sharded parameter, those of equal shards once; for another parameter, return
    the value.
    """
    if not isinstance(parameter, DTensor):
        return tensor
    total, mesh = sum_over_processes(tensor), parameter.device_mesh
    replicas = math.prod(
        mesh.size(dim) for dim, placement in enumerate(parameter.placements) if placement.is_replicate()
    )
    return total / replicas if total.is_floating_point() else total // replicas
