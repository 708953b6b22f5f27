"""Forgetting: how well the model still knows each training language at the end of a cycle."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..errors import PlasticityError
from ..network import preserve_model
from ..probing.evaluation import validation_loss
from ..records import FORGETTING_FILE, FORGETTING_KEY, append_record
from .config import ContinualConfig


if TYPE_CHECKING:
    from ..data.blocks import Blocks
    from .trainer import ContinualTrainer


class ForgettingCallback(TrainerCallback):
    """
    At the end of each cycle, a line in `forgetting.jsonl` with the validation loss on every training language.

    Args:
        trainer ([`ContinualTrainer`]): Whose run it is; gets the losses as `forgetting/<language>` too.
        eval_blocks (`dict[str, Blocks]`): The validation blocks of each language.

    Raises:
        [`PlasticityError`]: A language has fewer validation sequences than `probe_eval_sequences`.
    """

    def __init__(self, trainer: "ContinualTrainer", eval_blocks: "dict[str, Blocks]"):
        self.trainer, self.eval_blocks = trainer, eval_blocks
        wanted = trainer.args.probe_eval_sequences
        for language, blocks in eval_blocks.items():
            if len(blocks.prepare(wanted)) < wanted:
                raise PlasticityError(
                    f"probe_eval_sequences: {wanted} are asked for and the validation split of '{language}' has "
                    f"{len(blocks)}; give it more text, ask for fewer, or leave evaluate_forgetting out"
                )

    def on_step_begin(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._evaluate(args, state, model)

    def on_train_end(
        self, args: ContinualConfig, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._evaluate(args, state, model)

    def _evaluate(self, args: ContinualConfig, state: TrainerState, model: nn.Module) -> None:
        tasks_per_cycle = self.trainer.schedule.tasks_per_cycle
        task, rest = divmod(state.global_step, args.task_steps)
        if task == 0 or rest or task % tasks_per_cycle:
            return
        with preserve_model(model, parameters=False):
            losses = {
                language: validation_loss(model, blocks, args.probe_eval_sequences, args.per_device_train_batch_size)
                for language, blocks in self.eval_blocks.items()
            }
        record = {
            "cycle": task // tasks_per_cycle,
            "task": task,
            "step": state.global_step,
            "tokens": state.global_step * args.global_batch_tokens,
            "losses": losses,
        }
        if args.process_index == 0:
            append_record(Path(args.output_dir) / FORGETTING_FILE, record, FORGETTING_KEY)
        self.trainer.log({f"forgetting/{language}": loss for language, loss in losses.items()})
