"""Adam's bias correction for entries that were reset."""

from typing import Any

import torch
from torch import nn

from ..network import local, shard_of


class EntrySteps:
    """
    Corrects Adam's updates of entries whose moments were set to zero.

    Adam keeps one step count t for a whole tensor. An entry whose moments were reset k updates ago is updated with
    m / (1 − β₁ᵗ) and v / (1 − β₂ᵗ), but the correct count is k instead of t: its updates are too large by up to
    (1 − β₁ᵏ) / √(1 − β₂ᵏ). After `optimizer.step()`, both updates are computed from m, v and t, and the weight is
    moved by the difference. Two of these for one optimizer would correct the same entries twice.

    Args:
        optimizer (`torch.optim.Optimizer`): Adam or AdamW of torch, without `amsgrad`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        # By parameter: the tensor's step count when an entry was reset, of a shape that expands to the parameter's
        # (-1 for entries never reset), and the count at the last update.
        self._reset_at: dict[str, torch.Tensor] = {}
        self._last: dict[str, int] = {}

    def add(self, name: str, parameter: nn.Parameter, entries: torch.Tensor) -> None:
        """
        Correct these entries from now on.

        Args:
            name (`str`): The parameter's name.
            parameter (`nn.Parameter`): The parameter.
            entries (`torch.BoolTensor`): On the CPU, of the parameter's whole shape, or of size 1 in some dimensions
                for all entries along them.
        """
        state = self.optimizer.state.get(parameter, {})
        if "step" not in state:
            return  # the optimizer has no state yet, so all entries start together
        count = int(state["step"])
        known = self._reset_at.get(name)
        if known is None or self._last[name] > count:
            known = torch.full(entries.shape, -1, dtype=torch.int32)
        self._reset_at[name] = torch.where(entries, count, known)
        self._last[name] = count

    @torch.no_grad()
    def correct(self, parameters: dict[str, nn.Parameter]) -> None:
        """Correct the update that `optimizer.step()` has just made."""
        if not self._reset_at:
            return
        groups = {id(one): group for group in self.optimizer.param_groups for one in group["params"]}
        for name in list(self._reset_at):
            parameter = parameters[name]
            state, group = self.optimizer.state.get(parameter, {}), groups[id(parameter)]
            count, (beta1, beta2) = int(state.get("step", 0)), group["betas"]
            if count == self._last[name]:  # the update was skipped, as a GradScaler does
                continue
            # After the optimizer is cleared, all entries count from zero. Corrections below rounding are also dropped.
            if count < self._last[name] or beta2 ** int(count - self._reset_at[name].max()) < 1e-9:
                del self._reset_at[name], self._last[name]
                continue
            self._last[name] = count
            reset_at = shard_of(self._reset_at[name].expand(parameter.shape), parameter)
            weight, first, second = (local(one) for one in (parameter, state["exp_avg"], state["exp_avg_sq"]))
            at = (reset_at >= 0).to(weight.device)
            # In bf16, 0.999 is 1, and counts above 256 are rounded.
            precise = torch.promote_types(weight.dtype, torch.float32)
            own, m, v = (one.to(precise) for one in (count - reset_at.to(weight.device)[at], first[at], second[at]))
            lr, eps = float(group["lr"]), group["eps"]
            applied = m / (1 - beta1**count) / ((v / (1 - beta2**count)).sqrt() + eps)
            right = m / (1 - beta1**own) / ((v / (1 - beta2**own)).sqrt() + eps)
            weight[at] += (lr * (applied - right)).to(weight.dtype)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors that it holds."""
        return list(self._reset_at.values())

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"reset_at": dict(self._reset_at), "last": dict(self._last)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._reset_at, self._last = dict(state["reset_at"]), dict(state["last"])
