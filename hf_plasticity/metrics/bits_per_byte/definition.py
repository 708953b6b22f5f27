"""A loss that does not depend on the tokenizer."""

import math
from collections.abc import Sequence

import numpy as np


def bits_per_byte(
    losses: float | Sequence[float], num_tokens: float | Sequence[float], num_bytes: float | Sequence[float]
) -> float | list[float]:
    """
    The bits per byte of a text that a model requires: loss · tokens / (ln 2 · bytes). Lower is better. It can compare
    models with different tokenizers. Source: huggingface.co/papers/2101.00027, section 3.1.

    Args:
        losses (`float` or `Sequence[float]`): Mean cross-entropy in nats per predicted token.
        num_tokens (`float` or `Sequence[float]`): Tokens over which the mean was taken, one number for all losses or
            one for each.
        num_bytes (`float` or `Sequence[float]`): UTF-8 bytes of the text that these tokens spell, likewise.

    Returns:
        `float` or `list[float]`: Bits per byte; a list if any argument is a list.

    Raises:
        `ValueError`: A value that is not finite, a negative loss, a count that is not positive, or lengths that
            differ.

    Example:

    ```python
    >>> round(bits_per_byte(2.0, num_tokens=1000, num_bytes=4000), 6)
    0.721348
    ```
    """
    arguments = {
        name: np.asarray(values, dtype=np.float64)
        for name, values in (("losses", losses), ("num_tokens", num_tokens), ("num_bytes", num_bytes))
    }
    lengths = {name: len(values) for name, values in arguments.items() if values.ndim}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {lengths}; give one number for all, or one for each")
    for name, values in arguments.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {values[~np.isfinite(values)].flat[0]} is not a finite number")
        if name == "losses" and (values < 0).any():
            raise ValueError(f"losses: {values[values < 0].flat[0]:g} is negative; a cross-entropy is not")
        if name != "losses" and (values <= 0).any():
            raise ValueError(f"{name}: {values[values <= 0].flat[0]:g} is not a positive count")
    return (arguments["losses"] * arguments["num_tokens"] / (math.log(2) * arguments["num_bytes"])).tolist()
