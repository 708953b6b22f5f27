"""How a global batch is divided into sequences, processes and micro-batches."""

from .errors import PlasticityError


def divide_batch(
    global_batch_tokens: int, context_length: int, num_processes: int, micro_batch_size: int | None = None
) -> tuple[int, int, int]:
    """
    Divide a global batch.

    Args:
        global_batch_tokens (`int`): Tokens in an optimizer step of all processes.
        context_length (`int`): Tokens in a sequence.
        num_processes (`int`): Processes that train together.
        micro_batch_size (`int`, *optional*): Sequences in one forward pass of a process; by default its whole share.

    Returns:
        `tuple[int, int, int]`: Sequences in the global batch, sequences in a micro-batch, and the micro-batches that a
        process accumulates.

    Raises:
        [`PlasticityError`]: The global batch does not divide into sequences, processes and micro-batches.

    Example:

    ```python
    >>> divide_batch(524_288, context_length=2_048, num_processes=8, micro_batch_size=8)
    (256, 8, 4)
    ```
    """
    if context_length < 1:
        raise PlasticityError(f"context_length: {context_length} is not a positive number")
    batch, rest = divmod(global_batch_tokens, context_length)
    if rest or not batch:
        raise PlasticityError(
            f"global_batch_tokens: {global_batch_tokens} is not a multiple of context_length {context_length}"
        )
    share, rest = divmod(batch, num_processes)
    if rest or not share:
        raise PlasticityError(
            f"global_batch_tokens: its {batch} sequences do not divide among {num_processes} processes"
        )
    micro_batch_size = micro_batch_size or share
    if share % micro_batch_size:
        raise PlasticityError(
            f"per_device_train_batch_size: {micro_batch_size} does not divide the {share} sequences that each of "
            f"{num_processes} processes has of a global batch"
        )
    return batch, micro_batch_size, share // micro_batch_size
