"""The parts of a causal language model: its decoder layers, and the hidden units and attention heads in them."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ..errors import PlasticityError
from .heads import AttentionHeads, find_attention_heads
from .slices import UnsupportedModuleError
from .units import HiddenUnits, find_hidden_units, find_mlp


@dataclass
class Layer:
    """
    A decoder layer.

    Args:
        index (`int`): Its number, from 0.
        name (`str`): Its name in `model.named_modules()`.
        module (`nn.Module`): The layer; its output is the residual stream.
        down_projection (`nn.Module`, *optional*): The last matrix of its MLP. Its input is the hidden units after the
            activation: act(x) in a plain MLP, act(gate)·up in a gated one.
        gap (`str`, *optional*): Why there is no `down_projection`.
        units ([`HiddenUnits`], *optional*): The hidden units with the matrices around them.
        units_gap (`str`, *optional*): Why there are no `units`.
        heads ([`AttentionHeads`], *optional*): The attention heads with their matrices.
        heads_gap (`str`, *optional*): Why there are no `heads`.
    """

    index: int
    name: str
    module: nn.Module
    down_projection: nn.Module | None = None
    gap: str | None = None
    units: HiddenUnits | None = None
    units_gap: str | None = None
    heads: AttentionHeads | None = None
    heads_gap: str | None = None


@dataclass
class Structure:
    """
    The parts of a model that are measured and edited.

    Args:
        layers (`list[Layer]`): The decoder layers, in order.
        decoder (`nn.Module`): The model without its output head; its output is the input of the head.
    """

    layers: list[Layer]
    decoder: nn.Module

    def layer_of(self, parameter_name: str) -> Layer | None:
        """The layer a parameter belongs to, or `None` for one outside the layers."""
        for layer in self.layers:
            if parameter_name.startswith(layer.name + "."):
                return layer
        return None

    def kind_of(self, parameter_name: str) -> str:
        """The parameter's name without its layer, the same in every layer: `attn.c_attn.weight`."""
        layer = self.layer_of(parameter_name)
        return parameter_name if layer is None else parameter_name[len(layer.name) + 1 :]


def find_structure(model: PreTrainedModel) -> Structure:
    """
    Find the decoder layers of a causal language model, and in each its hidden units and attention heads.

    The rule is the same for every family. In a layer, exactly one module has an activation module, and that module has
    two or more linear children. The last of these whose output is as wide as the residual stream is the down
    projection. For the other matrices see [`find_hidden_units`] and [`find_attention_heads`]. For layers with another
    structure (mixtures of experts, activations that are plain functions, unknown fused matrices), the reason is
    recorded.

    Raises:
        [`PlasticityError`]: Not a Transformers model, or its decoder layers were not found.
    """
    if not isinstance(model, PreTrainedModel):
        raise PlasticityError(
            f"model: '{type(model).__name__}' is not a Transformers model; pass the PreTrainedModel inside it"
        )
    config = model.config.get_text_config(decoder=True)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            layers = [Layer(index, f"{name}.{index}", layer) for index, layer in enumerate(module)]
            break
    else:
        raise PlasticityError(
            f"model: the {config.num_hidden_layers} decoder layers of '{type(model).__name__}' were not found; "
            "use a causal language model with one list of layers"
        )
    # State-space models have none; some hybrids have a list with one number for each layer.
    num_heads = getattr(config, "num_attention_heads", None)
    for layer in layers:
        try:
            name, mlp, down = find_mlp(layer.module, layer.name, config.hidden_size)
            layer.down_projection = mlp.get_submodule(down)
            layer.units = find_hidden_units(name, mlp, down)
        except UnsupportedModuleError as reason:
            layer.units_gap = str(reason)
            layer.gap = layer.units_gap if layer.down_projection is None else None
        try:
            layer.heads = find_attention_heads(layer.module, layer.name, config.hidden_size, num_heads)
        except UnsupportedModuleError as reason:
            layer.heads_gap = str(reason)
    return Structure(layers, model.get_decoder())
