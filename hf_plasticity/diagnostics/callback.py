"""A callback that diagnoses the model during training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments

from ..data.token_blocks import as_blocks
from ..distributed import is_main_process
from ..errors import PlasticityError
from ..periodic import PeriodicCallback, Timeline
from ..records import DIAGNOSIS_KEY, DIAGNOSTICS_FILE, INITIAL_WEIGHTS_FILE, append_record
from .config import DiagnosticsConfig
from .diagnose import REFERENCE_MEASURES, diagnose, plain_model
from .drift import save_weights


class DiagnosticsCallback(PeriodicCallback):
    """
    Diagnose the model during training and write one line to `diagnostics.jsonl` for each diagnosis. The training is
    bit-identical to a training without the callback.

    The overall value of each measure is also logged through `Trainer.log` as `diagnostics/<measure>`. A diagnosis that
    is already recorded for this training is not recorded twice.

    Args:
        blocks (`torch.Tensor` or `np.ndarray` of shape `(N, T)`): Token ids to diagnose on, the same on every rank. A
            list of lists or a `datasets.Dataset` with `input_ids` also works.
        config ([`DiagnosticsConfig`], *optional*): What to measure, and the thresholds.
        every (`int` or `float`, *optional*, defaults to 0.1): Units of training between two diagnoses. With the unit
            `"steps"`, a number below 1 is a share of the training.
        unit (`str`, *optional*, defaults to `"steps"`): `"steps"`, `"epochs"`, `"tasks"` or `"cycles"`.
        task_steps (`int`, *optional*): Optimizer steps of a task instance, if the training has task instances.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, if the training has cycles.
        tokens_per_step (`int`, *optional*): Training tokens of an optimizer step over all processes.
        attention_mask (`torch.Tensor` or `np.ndarray` of shape `(N, T)`, *optional*): 0 for padding.
        track_initialization (`bool`, *optional*, defaults to `True`): Whether to save the weights before the first
            step to `initial_weights.safetensors` in the run folder and to measure the distance from them. Requires the
            disk space of one copy of the weights.
        diagnose_at_end (`bool`, *optional*, defaults to `True`): Whether to diagnose at the end of training, even if
            no diagnosis is due there.
        trainer (`Trainer`, *optional*): The trainer whose `log` receives the values. By default the one that runs the
            callback.
        output_dir (`str` or `Path`, *optional*): The run folder; `args.output_dir` by default.

    Raises:
        [`PlasticityError`]: A count that is not positive; when training begins, a run folder with the diagnoses of
            another training, or a resumed run without its initial weights.

    Example:

    ```python
    >>> trainer.add_callback(DiagnosticsCallback(eval_blocks, every=500))
    ```
    """

    records_file = DIAGNOSTICS_FILE

    def __init__(
        self,
        blocks: torch.Tensor | np.ndarray,
        config: DiagnosticsConfig | None = None,
        every: float = 0.1,
        unit: str = "steps",
        task_steps: int | None = None,
        tasks_per_cycle: int | None = None,
        tokens_per_step: int | None = None,
        attention_mask: torch.Tensor | np.ndarray | None = None,
        track_initialization: bool = True,
        diagnose_at_end: bool = True,
        trainer: Trainer | None = None,
        output_dir: str | Path | None = None,
    ):
        super().__init__(
            Timeline(task_steps, tasks_per_cycle, tokens_per_step),
            every,
            unit,
            at_end=diagnose_at_end,
            output_dir=output_dir,
            trainer=trainer,
        )
        self.blocks, self.attention_mask, self.config = (
            as_blocks(blocks, padded=attention_mask is not None),
            attention_mask,
            config or DiagnosticsConfig(),
        )
        named = self.config.measures
        self.tracks = track_initialization and (named is None or any(name in REFERENCE_MEASURES for name in named))

    def prepare(self, model: nn.Module, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        """Save the initial weights, or check that a resumed run has them."""
        if not self.tracks:
            return
        path = folder / INITIAL_WEIGHTS_FILE
        if state.global_step == 0:
            save_weights(plain_model(model), path, write=is_main_process())
            PartialState().wait_for_everyone()
        elif not path.exists():
            raise PlasticityError(
                f"diagnose: '{path}' does not exist, and the run resumes at step {state.global_step}, so the initial "
                "weights are not available; diagnose from the start of a run (in your own script, pass "
                "track_initialization=False)"
            )

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Diagnose the model."""
        reference = folder / INITIAL_WEIGHTS_FILE if self.tracks else None
        diagnosis = diagnose(model, self.blocks, self.config, attention_mask=self.attention_mask, reference=reference)
        if is_main_process():
            record = diagnosis.record(**self.timeline.position(step))
            append_record(folder / DIAGNOSTICS_FILE, record, DIAGNOSIS_KEY)
        self.log(diagnosis.scalars())
