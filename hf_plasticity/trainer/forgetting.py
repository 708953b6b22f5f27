"""Forgetting: the validation loss on each training language at the end of each cycle."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainingArguments

from ..distributed import is_main_process
from ..network import preserve_model
from ..periodic import PeriodicCallback, Timeline
from ..probing.evaluation import validation_loss
from ..records import FORGETTING_FILE, FORGETTING_KEY, append_record


if TYPE_CHECKING:
    from ..data.blocks import Blocks


class ForgettingCallback(PeriodicCallback):
    """
    Measure the validation loss on every training language at the end of each cycle and write one line to
    `forgetting.jsonl`. The losses are also logged through `Trainer.log` as `forgetting/<language>`.

    Args:
        eval_blocks (`dict[str, Blocks]`): The validation blocks of each language.
        eval_sequences (`int`): Validation sequences of each language.
        timeline ([`Timeline`]): The timeline of the training, which must have cycles.

    Raises:
        [`PlasticityError`]: A language has fewer validation sequences than `eval_sequences`.
    """

    records_file = FORGETTING_FILE

    def __init__(self, eval_blocks: "dict[str, Blocks]", eval_sequences: int, timeline: Timeline):
        super().__init__(timeline, every=1, unit="cycles", at_start=False)
        self.eval_blocks, self.eval_sequences = eval_blocks, eval_sequences
        for blocks in eval_blocks.values():
            blocks.require(eval_sequences, "probe_eval_sequences")

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Measure the losses."""
        with preserve_model(model, parameters=False):
            losses = {
                language: validation_loss(model, blocks, self.eval_sequences, args.per_device_train_batch_size)
                for language, blocks in self.eval_blocks.items()
            }
        if is_main_process():
            append_record(folder / FORGETTING_FILE, self.timeline.position(step) | {"losses": losses}, FORGETTING_KEY)
        self.log({f"forgetting/{language}": loss for language, loss in losses.items()})
