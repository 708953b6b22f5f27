"""The heads of an attention layer, and their positions in the matrices of queries, keys, values and outputs."""

from dataclasses import dataclass

import torch
from torch import nn

from .slices import Partition, UnsupportedModuleError, check_plain, features, linear_children


SEPARATE = ("q_proj", "k_proj", "v_proj")
# The layout of a matrix for queries, keys and values does not follow from its shape, so the classes with a known
# layout are listed. "blocks": all queries, all keys, all values. "interleaved": query, key and value of one head after
# another.
FUSED = {
    "GPT2Attention": ("c_attn", "blocks"),
    "GPTNeoXAttention": ("query_key_value", "interleaved"),
    "Phi3Attention": ("qkv_proj", "blocks"),
}


@dataclass(frozen=True)
class AttentionHeads:
    """
    The attention heads of a layer. With grouped-query attention a key-value head serves several query heads.

    Args:
        count (`int`): Query heads.
        kv_count (`int`): Key-value heads.
        dim (`int`): Head dimension.
        query ([`Partition`]): The outputs that are queries, by query head.
        key ([`Partition`]): The outputs that are keys, by key-value head.
        value ([`Partition`]): The outputs that are values, by key-value head.
        output ([`Partition`]): The columns of the output projection, by query head.
        coupling (`str`, *optional*): Why a change of one head's queries or keys also changes the other heads: a norm
            over all heads together (OLMo 2).
    """

    count: int
    kv_count: int
    dim: int
    query: Partition
    key: Partition
    value: Partition
    output: Partition
    coupling: str | None = None

    def kv_head(self, head: int) -> int:
        """The key-value head that serves a query head."""
        return head // (self.count // self.kv_count)

    def query_heads(self, kv_head: int) -> range:
        """The query heads that a key-value head serves."""
        group = self.count // self.kv_count
        return range(kv_head * group, (kv_head + 1) * group)


def find_attention_heads(layer: nn.Module, layer_name: str, hidden_size: int, count: int | None) -> AttentionHeads:
    """
    The attention heads of a layer.

    The attention must have linear children `q_proj`, `k_proj`, `v_proj` and one more, the output projection, or its
    class must be one of `FUSED`.

    Args:
        layer (`nn.Module`): The decoder layer.
        layer_name (`str`): Its name in the model.
        hidden_size (`int`): Width of the residual stream.
        count (`int`, *optional*): Query heads, from the configuration.

    Raises:
        [`UnsupportedModuleError`]: The attention has another structure.
    """
    if not isinstance(count, int):
        raise UnsupportedModuleError("the configuration has no number of attention heads that is valid for all layers")
    found = [
        (name, module)
        for name, module in layer.named_modules(prefix=layer_name)
        if _layout(module) or set(SEPARATE) <= linear_children(module).keys()
    ]
    if len(found) != 1:
        raise UnsupportedModuleError(
            f"{len(found) or 'no'} modules have separate q_proj, k_proj and v_proj, or one matrix for all three "
            f"whose layout is known ({', '.join(FUSED)}), so its attention heads are not known"
        )
    name, attention = found[0]
    linear = linear_children(attention)
    layout = _layout(attention)
    inputs = SEPARATE if layout is None else (layout[0],)
    outputs = [child for child in linear if child not in inputs]
    if len(outputs) != 1 or features(linear[outputs[0]])[1] != hidden_size:
        raise UnsupportedModuleError(
            f"'{type(attention).__name__}' has {', '.join(linear)} and not one output projection beside "
            f"{', '.join(inputs)}, so its attention heads are not known"
        )
    for child, module in linear.items():
        check_plain(f"{name}.{child}", module)
    width = features(linear[outputs[0]])[0]
    sizes = [features(linear[child])[1] for child in inputs]  # q, k and v, or their sum
    dim = width // count
    kv_width = sizes[1] if layout is None else (sizes[0] - width) // 2
    kv_count = kv_width // dim if dim else 0
    expected = [width, kv_width, kv_width] if layout is None else [width + 2 * kv_width]
    fits = sizes == expected and kv_count and (dim * count, dim * kv_count) == (width, kv_width)
    if not fits or count % kv_count or (layout is not None and layout[1] == "interleaved" and kv_count != count):
        raise UnsupportedModuleError(
            f"'{type(attention).__name__}' has {', '.join(inputs)} with {sizes} outputs, which do not divide into "
            f"{count} heads with {width} inputs of '{outputs[0]}'"
        )
    rows = _rows(count, kv_count, dim, None if layout is None else layout[1])
    modules = SEPARATE if layout is None else inputs * 3
    query, key, value = (
        Partition(f"{name}.{child}", linear[child], "outputs", index) for child, index in zip(modules, rows)
    )
    output = Partition(f"{name}.{outputs[0]}", linear[outputs[0]], "inputs", _consecutive(count, dim))
    return AttentionHeads(count, kv_count, dim, query, key, value, output, _coupling(attention, dim, count, kv_count))


def _layout(attention: nn.Module) -> tuple[str, str] | None:
    # FSDP2 changes the class of a module that it shards to a subclass.
    return next((FUSED[kind.__name__] for kind in type(attention).__mro__ if kind.__name__ in FUSED), None)


def _consecutive(count: int, dim: int, start: int = 0) -> torch.Tensor:
    return start + torch.arange(count * dim).view(count, dim)


def _rows(count: int, kv_count: int, dim: int, layout: str | None) -> tuple[torch.Tensor, ...]:
    """For queries, keys and values the outputs of each head, (heads, dim)."""
    if layout is None:
        return _consecutive(count, dim), _consecutive(kv_count, dim), _consecutive(kv_count, dim)
    if layout == "blocks":
        first_key, first_value = count * dim, (count + kv_count) * dim
        return (
            _consecutive(count, dim),
            _consecutive(kv_count, dim, first_key),
            _consecutive(kv_count, dim, first_value),
        )
    return tuple(torch.arange(count * 3 * dim).view(count, 3, dim).unbind(1))


def _coupling(attention: nn.Module, dim: int, count: int, kv_count: int) -> str | None:
    for name, child in attention.named_children():
        for parameter in child.parameters(recurse=False):
            if parameter.ndim == 1 and parameter.numel() > dim and "norm" in name:
                return f"'{name}' normalizes all heads together"
    return None
