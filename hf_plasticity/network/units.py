"""The hidden units of an MLP, and the matrices around them."""

from dataclasses import dataclass

import torch
from torch import nn

from .slices import Partition, UnsupportedModuleError, check_plain, features, linear_children


@dataclass(frozen=True)
class HiddenUnits:
    """
    The hidden units of a layer's MLP: h = act(W_in x + b_in) in a plain one, h = act(gate)·up in a gated one, and
    W_out h + b_out after them.

    Args:
        count (`int`): Number of units.
        incoming (`tuple[Partition, ...]`): The rows of W_in and entries of b_in by unit: one matrix in a plain MLP; in
            a gated one two, or one that holds both.
        outgoing ([`Partition`]): The columns of W_out by unit. Its `module` is the down projection, whose input is h.
        activation (`nn.Module`): The activation. Its input is the pre-activation, its output h or act(gate).
    """

    count: int
    incoming: tuple[Partition, ...]
    outgoing: Partition
    activation: nn.Module

    @property
    def output_bias(self) -> nn.Parameter | None:
        """b_out, if there is one."""
        return self.outgoing.module.bias


def find_mlp(layer: nn.Module, layer_name: str, hidden_size: int) -> tuple[str, nn.Module, str]:
    """
    The MLP of a layer: its name in the model, the module, and in it the name of the down projection.

    Raises:
        [`UnsupportedModuleError`]: The layer has no MLP, several, or one that is neither plain nor gated.
    """
    owners = [
        (name, module)
        for name, module in layer.named_modules(prefix=layer_name)
        if any(is_activation(child) for child in module.children())
    ]
    if len(owners) != 1:
        found = "no module owns an activation module" if not owners else f"{len(owners)} modules own an activation"
        raise UnsupportedModuleError(
            f"{found} (a functional activation or a mixture of experts), so its hidden units are not known"
        )
    name, mlp = owners[0]
    linear = linear_children(mlp)
    down = [child for child, module in linear.items() if features(module)[1] == hidden_size]
    if len(linear) < 2 or not down:
        raise UnsupportedModuleError(
            f"'{type(mlp).__name__}' has an activation but not the linear modules of an MLP (a mixture of "
            "experts or an adapter), so its hidden units are not known"
        )
    count = features(linear[down[-1]])[0]
    above = [features(module) for child, module in linear.items() if child != down[-1]]
    widths = sorted(outputs for _, outputs in above)
    if widths not in ([count], [count, count], [2 * count]) or any(inputs != hidden_size for inputs, _ in above):
        raise UnsupportedModuleError(
            f"the linear modules {', '.join(linear)} of '{type(mlp).__name__}' are neither a plain nor a gated MLP "
            f"of {count} hidden units"
        )
    return name, mlp, down[-1]


def find_hidden_units(name: str, mlp: nn.Module, down: str) -> HiddenUnits:
    """
    The hidden units of an MLP with the matrices around them.

    The rule is the same for every family. In addition to the down projection with n inputs, the MLP has one linear
    child with n outputs (plain), two of them (gated), or one with 2n outputs, of which i and n + i belong to unit i
    (gated; Phi-3 and GLM). [`find_mlp`] checks this.

    Args:
        name (`str`): The name of the MLP in the model.
        mlp (`nn.Module`): The MLP, as [`find_mlp`] finds it.
        down (`str`): The name of the down projection in it.

    Raises:
        [`UnsupportedModuleError`]: The matrices are not plain, such as those with adapters.
    """
    linear = linear_children(mlp)
    count = features(linear[down])[0]
    above = {child: module for child, module in linear.items() if child != down}
    for child, module in linear.items():
        check_plain(f"{name}.{child}", module)
    numbers = torch.arange(count)[:, None]
    fused = [features(module)[1] for module in above.values()] == [2 * count]
    index = torch.cat([numbers, count + numbers], dim=1) if fused else numbers  # (count, 1 or 2)
    return HiddenUnits(
        count=count,
        incoming=tuple(Partition(f"{name}.{child}", module, "outputs", index) for child, module in above.items()),
        outgoing=Partition(f"{name}.{down}", linear[down], "inputs", numbers),
        activation=next(child for child in mlp.children() if is_activation(child)),
    )


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function."""
    home = type(module).__module__
    return home == "transformers.activations" or (
        home == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)
    )
