"""The plan of a run: its settings as input of the arithmetic, and the text that it requires."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.tokenizers import load_tokenizer
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig, parse_experiment
from ..experiment.data import TOKENIZER_FOLDER, run_schedule, vocabulary
from ..models import model_size
from ..network.head_loss import AUTO, FUSED, FUSED_FROM_VOCABULARY, LOGITS, head_loss_bytes
from .arithmetic import plan_run
from .measure import measure_throughput
from .plan import Plan
from .text import Text, text_of_study


@dataclass(frozen=True)
class StudyPlan:
    """
    The estimated cost of a run and its text.

    Args:
        study ([`ExperimentConfig`]): The settings.
        vocab_size (`int`): Rows of the embedding.
        no_tokenizer (`str`, *optional*): Why the tokenizer is not available; `None` if it is.
        sharding (`str`): `"none"` or `"fsdp2"`.
        plan ([`Plan`]): Parameters, FLOPs, time, memory, disk, onset.
        text (`list[Text]`): Tokens of each language.
        measured (`str`, *optional*): Where the throughput was measured; `None` if it was given, or there is none.
        head_loss (`str`): What the run computes its loss with: `"logits"` or `"fused"`.
    """

    study: ExperimentConfig
    vocab_size: int
    no_tokenizer: str | None
    sharding: str
    plan: Plan
    text: list[Text]
    measured: str | None = None
    head_loss: str = LOGITS

    def to_dict(self) -> dict[str, Any]:
        """The plan as a dictionary for JSON."""
        return {
            "size": self.study.model.size,
            "schedule": self.study.training.schedule,
            "languages": self.study.data.languages,
            "probe_language": self.study.data.probe_language,
            "vocab_size": self.vocab_size,
            "head_loss": self.head_loss,
            "no_tokenizer": self.no_tokenizer,
            "sharding": self.sharding,
            "plan": dataclasses.asdict(self.plan),
            "text": [dataclasses.asdict(text) for text in self.text],
            "measured": self.measured,
        }


def parse_planned_study(arguments: Sequence[str]) -> ExperimentConfig:
    """Parse the settings of a run. They need not be possible on this machine: a laptop can plan for GPUs."""
    here = [] if torch.cuda.is_available() else ["--use_cpu", "--tf32=false"]
    return parse_experiment([*arguments, *here])


def plan_study(
    study: ExperimentConfig,
    num_processes: int = 1,
    sharding: str = "none",
    tokens_per_second: float | None = None,
    measure: bool = False,
) -> StudyPlan:
    """
    Plan a run. Nothing is prepared, trained or written.

    Args:
        study ([`ExperimentConfig`]): The run.
        num_processes (`int`, *optional*, defaults to 1): Devices of the run.
        sharding (`str`, *optional*, defaults to `"none"`): `"none"` or `"fsdp2"`.
        tokens_per_second (`float`, *optional*): Training throughput over all of them.
        measure (`bool`, *optional*, defaults to `False`): Whether to measure it on one device of this machine, and to
            count as many of those as there are processes.

    Raises:
        [`PlasticityError`]: The configuration is not possible.
    """
    training, length = study.training, study.data.context_length
    if measure and tokens_per_second is not None:
        raise PlasticityError(f"tokens_per_second: {tokens_per_second} is given and --measure too; leave one out")
    tokenizer, why = _tokenizer(study)
    vocab_size = _vocab_size(study, tokenizer, why)
    shape = model_size(study.model.size)
    schedule = run_schedule(study, batch_size=1)
    probing = not training.no_probe
    numbers = {
        "d_model": shape.d_model,
        "layers": shape.layers,
        "vocab_size": vocab_size,
        "context_length": length,
        "global_batch_tokens": training.global_batch_tokens,
        "task_steps": training.task_steps,
        "tasks_per_cycle": schedule.tasks_per_cycle,
        "cycles": training.cycles,
        "probe_every_cycles": training.probe_every_cycles if probing else None,
        "probe_steps": training.probe_steps,
        "eval_sequences": training.probe_eval_sequences,
        "probe_repeats": training.probe_repeats,
        "lora_rank": training.probe_lora_rank if training.probe_adaptation == "lora" else None,
        "forgetting_languages": len(schedule.languages) if training.evaluate_forgetting else 0,
        "num_processes": num_processes,
        "sharding": sharding,
        "micro_batch_size": training.micro_batch_size,
        "bf16": training.bf16,
        "gradient_checkpointing": training.gradient_checkpointing,
        "save_steps": None if training.save_strategy == "no" else int(training.save_steps),
        "save_total_limit": training.save_total_limit or None,
        "save_probe_checkpoints": training.save_probe_checkpoints,
        "tokens_per_second": tokens_per_second,
    }
    plan = plan_run(**numbers)
    head_loss = _head_loss(training.head_loss, vocab_size)
    if head_loss == FUSED:
        numbers["fused_head_bytes"] = head_loss_bytes(
            FUSED, plan.micro_batch_size * length, vocab_size, shape.d_model, training.bf16
        )
        plan = plan_run(**numbers)
    batch_size = training.global_batch_tokens // length
    probe = training.probe_config(batch_size)
    text = text_of_study(study, run_schedule(study, batch_size), batch_size, vocab_size, tokenizer)
    measured = None
    if measure:
        throughput, measured = measure_throughput(study, vocab_size, plan, head_loss)
        numbers["tokens_per_second"] = throughput * num_processes
    numbers |= {
        "probe_evaluations": len(probe.evaluation_steps()),
        "block_bytes": sum(one.bytes_on_disk for one in text),
    }
    return StudyPlan(study, vocab_size, why or None, sharding, plan_run(**numbers), text, measured, head_loss)


def _head_loss(head_loss: str, vocab_size: int) -> str:
    """What `use_head_loss` chooses for GPT-2, which the fused loss fits."""
    if head_loss == AUTO:
        return FUSED if vocab_size >= FUSED_FROM_VOCABULARY else LOGITS
    return head_loss


def _tokenizer(study: ExperimentConfig) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer if it is available, and otherwise the reason why it is not."""
    name = study.data.tokenizer
    if study.data.train_tokenizer is not None:
        folder = Path(study.training.output_dir) / TOKENIZER_FOLDER
        if not folder.exists():
            return None, "the tokenizer is not trained yet; `hf-plasticity prepare` trains it"
        name = str(folder)
    try:
        return load_tokenizer(name), ""
    except PlasticityError as error:
        return None, str(error).removeprefix("tokenizer: ")


def _vocab_size(study: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None, why: str) -> int:
    """Rows of the embedding. If the setting gives them, no tokenizer is needed."""
    if tokenizer is not None:
        return vocabulary(study, tokenizer)
    vocab_size = study.model.vocab_size or study.data.train_tokenizer
    if vocab_size is None:
        raise PlasticityError(f"tokenizer: {why}; alternatively give vocab_size")
    return vocab_size
