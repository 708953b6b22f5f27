"""Token blocks from objects in memory: arrays, tensors, lists, datasets."""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from ..errors import PlasticityError


if TYPE_CHECKING:
    from .blocks import Blocks

TokenBlocks: TypeAlias = "Blocks | np.ndarray | torch.Tensor"


def as_blocks(blocks: Any, padded: bool = False) -> TokenBlocks:
    """
    Convert [`Blocks`], an array, a tensor, a list of lists, or a `datasets.Dataset` with `input_ids` of one length to
    token blocks.

    Args:
        blocks (`Any`): The sequences.
        padded (`bool`, *optional*, defaults to `False`): Whether a dataset may have padding (with a mask).

    Returns:
        [`Blocks`], or `np.ndarray` or `torch.Tensor` of shape `(num_blocks, context_length)`.

    Raises:
        [`PlasticityError`]: Anything else, sequences of different lengths, padding, or numbers that are not whole.
    """
    if hasattr(blocks, "prepare"):
        return blocks
    if isinstance(blocks, np.ndarray | torch.Tensor):
        integers = (
            np.issubdtype(blocks.dtype, np.integer)
            if isinstance(blocks, np.ndarray)
            else not (blocks.is_floating_point() or blocks.is_complex() or blocks.dtype == torch.bool)
        )
        if blocks.ndim == 2 and integers:
            if isinstance(blocks, torch.Tensor) and blocks.dtype in (torch.uint16, torch.uint32, torch.uint64):
                return blocks.long()  # torch has hardly any operation for these
            return blocks
        raise PlasticityError(
            f"blocks: an array of shape {tuple(blocks.shape)} and type {blocks.dtype}; pass whole numbers (token ids) "
            "of shape (num_blocks, context_length)"
        )
    columns = getattr(blocks, "column_names", None) or ()
    for name, padding in (("attention_mask", 0), ("labels", -100)):
        if name in columns and not padded and any(padding in row for row in blocks[name]):
            raise PlasticityError(
                f"blocks: {name} has {padding}, but every token of a block counts; make blocks without padding with "
                "`text_blocks`"
            )
    rows = blocks["input_ids"] if "input_ids" in columns else blocks
    try:
        rows = list(rows)
        lengths = {len(row) for row in rows}
        array = np.asarray([np.asarray(row) for row in rows])
    except (TypeError, ValueError):
        lengths, array = set(), np.empty(0)
    if len(lengths) != 1 or array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise PlasticityError(
            f"blocks: '{type(blocks).__name__}' does not hold token sequences of one length; make blocks with "
            "`text_blocks`, or pass an array of token ids of shape (num_blocks, context_length)"
        )
    return array.astype(np.int64)
