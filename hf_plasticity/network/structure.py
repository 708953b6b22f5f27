"""Where the parts of a causal language model are: its decoder layers, their MLP hidden units, their parameters."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import PlasticityError


@dataclass
class Layer:
    """
    A decoder layer.

    Args:
        index (`int`): Its place, from 0.
        name (`str`): Its name in `model.named_modules()`.
        module (`nn.Module`): The layer; its output is the residual stream.
        down_projection (`nn.Module`, *optional*): The last matrix of its MLP. Its input is the hidden units after the
            activation: act(x) in a plain MLP, act(gate)·up in a gated one.
        gap (`str`, *optional*): Why there is no `down_projection`.
    """

    index: int
    name: str
    module: nn.Module
    down_projection: nn.Module | None = None
    gap: str | None = None


@dataclass
class Structure:
    """
    The parts of a model that are measured.

    Args:
        layers (`list[Layer]`): The decoder layers, in order.
        decoder (`nn.Module`): The model without its output head; its output is what the head reads.
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
    Find the decoder layers of a causal language model and the hidden units of their MLPs.

    One rule for every family: in a layer exactly one module owns an activation module, that module has two or more
    linear children, and the last of these whose output is as wide as the residual stream is the down projection.
    Mixtures of experts and activations that are mere functions do not fit it, and the layer says so.

    Raises:
        [`PlasticityError`]: The model is no Transformers model, or its decoder layers were not found.
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
            "a causal language model with one list of layers would be right"
        )
    for layer in layers:
        _find_down_projection(layer, config.hidden_size)
    return Structure(layers, model.get_decoder())


def _find_down_projection(layer: Layer, hidden_size: int) -> None:
    owners = [module for module in layer.module.modules() if any(_is_activation(child) for child in module.children())]
    if len(owners) != 1:
        found = "no module owns an activation module" if not owners else f"{len(owners)} modules own an activation"
        layer.gap = f"{found} (a functional activation or a mixture of experts), so its hidden units are not known"
        return
    linear = [child for child in owners[0].children() if isinstance(child, nn.Linear | Conv1D)]
    down = [child for child in linear if _output_width(child) == hidden_size]
    if len(linear) < 2 or not down:
        layer.gap = (
            f"'{type(owners[0]).__name__}' has an activation but not the linear modules of an MLP (a mixture of "
            "experts or an adapter), so its hidden units are not known"
        )
        return
    layer.down_projection = down[-1]


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return home == "transformers.activations" or (
        home == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)
    )


def _output_width(module: nn.Module) -> int:
    return module.nf if isinstance(module, Conv1D) else module.out_features
