"""The base class of mitigations that observe and reset hidden units of the MLPs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import PlasticityError
from ..network import Layer, Slices, find_structure, local, optimizer_moments, reshard, shard_offset
from .base import Mitigation, argument, sum_of_shards, sum_over_processes


KINDS = ("absolute", "signed", "fired", "gradient")


def layers_with_units(model: PreTrainedModel, name: str) -> list[Layer]:
    """
    The decoder layers of a model, all with known hidden units.

    Raises:
        [`PlasticityError`]: The hidden units of a layer are not known.
    """
    layers = find_structure(model).layers
    for layer in layers:
        if layer.units is None:
            raise PlasticityError(
                f"model: {name} requires the hidden units of every MLP of '{type(model).__name__}', and those "
                f"of layer {layer.index} are not known: {layer.units_gap}"
            )
    return layers


class _SumGradient(torch.autograd.Function):
    """The identity, whose backward pass adds Σ|∂L/∂h| over tokens to a tensor."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, total: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.totals = total, tokens
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total, tokens = ctx.totals
        total += _absolute_sum(gradient.reshape(-1, gradient.shape[-1]))
        tokens += gradient[..., 0].numel()
        return gradient, None, None


def _absolute_sum(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, ord=1, dim=0, dtype=torch.promote_types(rows.dtype, torch.float32))


class UnitActivity:
    """
    Sums over the tokens of a step for the hidden units of each layer, and the number of tokens. Use them only as
    ratios or flags, because gradient checkpointing computes a forward pass twice.

    Args:
        layers (`list[Layer]`): Layers with `units`.
        kinds (`Sequence[str]`): Which sums: `"absolute"` Σ|h|, `"signed"` Σh, `"fired"` how often the unit was active
            (h > 0; in a gated MLP act(gate) > 0), `"gradient"` Σ|∂L/∂h|.
    """

    def __init__(self, layers: list[Layer], kinds: Sequence[str]):
        assert set(kinds) <= set(KINDS)
        self.watching = False
        self.kinds = tuple(kinds)
        self._sums: list[dict[str, torch.Tensor]] = []
        self._tokens: list[torch.Tensor] = []
        self._handles = []
        for number, layer in enumerate(layers):
            units = layer.units
            device = local(units.outgoing.module.weight).device
            self._sums.append({kind: torch.zeros(units.count, device=device) for kind in kinds})
            self._tokens.append(torch.zeros((), device=device))
            before = units.outgoing.module.register_forward_pre_hook
            if set(kinds) & {"absolute", "signed"}:
                self._handles.append(before(self._observe_units(number)))
            if "gradient" in kinds:
                self._handles.append(before(self._observe_gradients(number)))
            if "fired" in kinds:
                hook = self._observe_firing(number)
                self._handles.append(units.activation.register_forward_hook(hook))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def take(self) -> list[dict[str, torch.Tensor]]:
        """
        The sums since the last call over all processes, in float64 on the CPU: for each layer the sums `(units,)` by
        kind, and `tokens`.
        """
        parts = [part for sums, tokens in zip(self._sums, self._tokens) for part in (*sums.values(), tokens[None])]
        together = sum_over_processes(torch.cat(parts)).cpu().double()
        split = iter(together.split([len(part) for part in parts]))
        taken = [{kind: next(split) for kind in (*self.kinds, "tokens")} for _ in self._sums]
        self.clear()
        return taken

    def tensors(self) -> list[torch.Tensor]:
        """All tensors that it holds."""
        return [*self._tokens, *(one for sums in self._sums for one in sums.values())]

    def clear(self) -> None:
        """Set the sums to zero."""
        for sums, tokens in zip(self._sums, self._tokens):
            for one in (*sums.values(), tokens):
                one.zero_()

    def _observe_units(self, number: int) -> Callable:
        sums, tokens = self._sums[number], self._tokens[number]

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if self.watching and module.training:
                with torch.no_grad():
                    rows = args[0].detach().reshape(-1, args[0].shape[-1])
                    if "absolute" in sums:
                        sums["absolute"].add_(_absolute_sum(rows))
                    if "signed" in sums:
                        sums["signed"].add_(rows.sum(0, dtype=torch.float32))
                    tokens.add_(rows.shape[0])

        return hook

    def _observe_firing(self, number: int) -> Callable:
        sums, tokens = self._sums[number], self._tokens[number]

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self.watching and module.training:
                with torch.no_grad():
                    rows = output.detach().reshape(-1, output.shape[-1])
                    sums["fired"].add_((rows > 0).sum(0, dtype=torch.float32))
                    tokens.add_(rows.shape[0])

        return hook

    def _observe_gradients(self, number: int) -> Callable:
        sums, tokens = self._sums[number], self._tokens[number]

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            if self.watching and module.training and args[0].requires_grad:
                return _SumGradient.apply(args[0], sums["gradient"], tokens), *args[1:]
            return None

        return hook


@dataclass(eq=False, kw_only=True)
class UnitMitigation(Mitigation):
    """
    A mitigation that observes the hidden units of the MLPs and resets some of them. Incoming weights and biases are
    drawn from the model's initial distribution. Outgoing weights and the optimizer's moments of these entries become
    0.

    Args:
        exact_moments (`bool`, *optional*, defaults to `False`):
            Whether the reset entries are updated as if Adam counted their steps from the reset. By default, they use
            the step count of the whole tensor, and their first updates are up to 1.1 times (β₂ = 0.95) or 6.6 times
            (β₂ = 0.999) as large.
    """

    exact_moments: bool = argument(
        False, "whether Adam's bias correction of reset entries restarts", "chosen here; the references do not"
    )

    watched: ClassVar[tuple[str, ...]] = ("absolute",)
    resets_moments: ClassVar[bool] = True

    def start(self) -> None:
        self.layers = layers_with_units(self.model, self.name)
        for layer in self.layers:
            everything = range(layer.units.count)
            self.check_trained({s.name: s.parameter for s in self.incoming(layer, everything)})
            self.check_trained({s.name: s.parameter for s in layer.units.outgoing.slices(everything)})
        self.activity = UnitActivity(self.layers, self.watched)
        self._undo.append(self.activity.remove)
        self.activity.watching = self.watches(1)

    def watches(self, step: int) -> bool:
        """Whether the units are observed in an optimizer step."""
        return True

    def observe(self, step: int, taken: list[dict[str, torch.Tensor]]) -> None:
        """Called before the update of an observed step, with the sums of that step over all processes."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        watching, self.activity.watching = self.activity.watching, False
        try:
            yield
        finally:
            self.activity.watching = watching

    def before_step(self, step: int) -> None:
        if not self.activity.watching:
            return
        taken = self.activity.take()
        blind = [layer.index for layer, one in zip(self.layers, taken) if not one["tokens"] > 0]
        if blind:
            raise PlasticityError(
                f"mitigation: {self.name} saw no training pass of layer {blind[0]} in step {step}; with torch.compile "
                "it has to be attached before the first forward pass"
            )
        self.observe(step, taken)

    def step_end(self, step: int) -> None:
        self.activity.watching = self.watches(step + 1)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.activity.clear()
        self.activity.watching = state["watching"]

    def state_dict(self) -> dict:
        return super().state_dict() | {"watching": self.activity.watching}

    def incoming(self, layer: Layer, units: Sequence[int]) -> list[Slices]:
        """The slices of weights and biases that compute some units of a layer."""
        return [slices for partition in layer.units.incoming for slices in partition.slices(units)]

    def reset(self, layer: Layer, units: Sequence[int], draw_step: int) -> None:
        """
        Reset units of a layer.

        Args:
            layer ([`Layer`]): The layer.
            units (`Sequence[int]`): Their indices, the same on every process.
            draw_step (`int`): With the seed, it determines the new weights.
        """
        reshard(self.model)
        outgoing = layer.units.outgoing.slices(units)
        for slices in self.incoming(layer, units):
            slices.write_(slices.of(self.fresh(slices.name, draw_step)))
        for slices in outgoing:
            slices.zero_()
        for slices in (*self.incoming(layer, units), *outgoing):
            self.forget(slices)

    def fresh(self, name: str, draw_step: int) -> torch.Tensor:
        """A draw of a whole parameter from the initial distribution."""
        return self.initialization.draw(name, self.seed, draw_step)

    def forget(self, slices: Slices) -> None:
        """Set the optimizer's moments of some entries to zero."""
        for moment in optimizer_moments(self.optimizer, slices.parameter).values():
            slices.zero_(moment)
        if self.exact_moments:
            shape = [1] * slices.parameter.ndim
            shape[slices.dim] = slices.parameter.shape[slices.dim]
            entries = torch.zeros(shape[slices.dim], dtype=torch.bool)
            entries[slices.index] = True
            self.entry_steps.add(slices.name, slices.parameter, entries.view(shape))

    def outgoing_magnitudes(self, layer: Layer) -> torch.Tensor:
        """The mean |w| of the outgoing weights of each unit, in float64 on the CPU: `(units,)`."""
        partition = layer.units.outgoing
        weight, dim = partition.module.weight, partition.dim
        magnitudes = local(weight.detach()).abs().sum(1 - dim, dtype=torch.float32)
        sums = magnitudes.new_zeros(weight.shape[dim])
        start = shard_offset(weight)[dim]
        sums[start : start + len(magnitudes)] = magnitudes
        sums = sum_of_shards(sums, weight).cpu().double()
        return sums[partition.index.flatten()] / weight.shape[1 - dim]
