"""The plan of a run: its settings as input of the arithmetic, and the text that it requires."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.tokenizers import load_tokenizer
from ..errors import PlasticityError
from ..experiment.config import ExperimentConfig, parse_experiment
from ..experiment.data import TOKENIZER_FOLDER, vocabulary
from ..network.head_loss import AUTO, FUSED, FUSED_FROM_VOCABULARY, LOGITS
from .arithmetic import plan_run
from .measure import measure_throughput
from .text import text_of_study


# Flags that a single process, such as this one, refuses.
OF_SEVERAL_PROCESSES = ("ddp_backend", "fsdp")


def without_settings(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some settings, given as `--name=value` or as `--name value …`."""
    kept: list[str] = []
    dropped = False
    for word in arguments:
        if word.startswith("--"):
            dropped = word.split("=")[0].removeprefix("--").replace("-", "_") in names
        if not dropped:
            kept.append(word)
    return kept


def parse_planned_study(arguments: Sequence[str], on_cpu: bool = False) -> ExperimentConfig:
    """
    Parse the settings of a run. They need not be possible on this machine: a laptop can plan for GPUs.

    Args:
        arguments (`Sequence[str]`): The settings.
        on_cpu (`bool`, *optional*, defaults to `False`): Whether the devices of this machine are not used.
    """
    here = ["--use_cpu", "--tf32=false"] if on_cpu or not torch.cuda.is_available() else []
    return parse_experiment([*without_settings(arguments, OF_SEVERAL_PROCESSES), *here])


def plan_study(
    study: ExperimentConfig,
    num_processes: int = 1,
    sharding: str = "none",
    tokens_per_second: float | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """
    Plan a run. Nothing is prepared, trained or written.

    Args:
        study ([`ExperimentConfig`]): The run.
        num_processes (`int`, *optional*, defaults to 1): Devices of the run.
        sharding (`str`, *optional*, defaults to `"none"`): `"none"` or `"fsdp2"`.
        tokens_per_second (`float`, *optional*): Training throughput over all of them.
        measure (`bool`, *optional*, defaults to `False`): Whether to measure it on one device of this machine, and to
            count as many of those as there are processes.

    Returns:
        `dict[str, Any]`: What `--json` prints: the settings that decide, `head_loss` (`"logits"` or `"fused"`),
        `no_tokenizer` (why the tokenizer is not available), `plan` ([`plan_run`]), `text` (a list of [`Text`]),
        `measured` (where the throughput was measured), and `not_counted` (the settings whose cost is not in the plan,
        with that cost).

    Raises:
        [`PlasticityError`]: The configuration is not possible.
    """
    if measure and tokens_per_second is not None:
        raise PlasticityError(f"tokens_per_second: {tokens_per_second} is given and --measure too; leave one out")
    tokenizer, no_tokenizer = _tokenizer(study)
    vocab_size = _vocab_size(study, tokenizer, no_tokenizer)
    head_loss = _head_loss(study.training.head_loss, vocab_size)
    plan = partial(plan_run, study, vocab_size, num_processes=num_processes, sharding=sharding, head_loss=head_loss)
    planned, measured = plan(tokens_per_second=tokens_per_second), None
    text = text_of_study(study, vocab_size, tokenizer)
    if measure:
        throughput, measured = measure_throughput(study, planned, vocab_size, head_loss)
        tokens_per_second = throughput * num_processes
    return {
        "size": study.model.size,
        "schedule": study.training.schedule,
        "languages": study.data.languages,
        "probe_language": study.data.probe_language,
        "vocab_size": vocab_size,
        "head_loss": head_loss,
        "no_tokenizer": no_tokenizer,
        "sharding": sharding,
        "plan": plan(tokens_per_second=tokens_per_second, text=text),
        "text": text,
        "measured": measured,
        "not_counted": _not_counted(study),
    }


def _not_counted(study: ExperimentConfig) -> dict[str, str]:
    """The settings whose cost is not part of the plan, and what is missing."""
    training = study.training
    missing = {}
    if not training.optim.value.startswith("adamw_torch"):
        missing["optim"] = f"memory and disk are those of AdamW, not of {training.optim.value}"
    if training.mitigation is not None:
        missing["mitigation"] = f"time, memory and disk of {', '.join(training.mitigation)}"
    if training.diagnose:
        missing["diagnose"] = "time, memory and disk of the diagnoses"
    if training.torch_compile:
        missing["torch_compile"] = "time and memory are those without compilation"
    return missing


def _head_loss(head_loss: str, vocab_size: int) -> str:
    """What `use_head_loss` chooses for GPT-2, which the fused loss fits."""
    if head_loss == AUTO:
        return FUSED if vocab_size >= FUSED_FROM_VOCABULARY else LOGITS
    return head_loss


def _tokenizer(study: ExperimentConfig) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """The tokenizer if it is available, and otherwise the reason why it is not."""
    name = study.data.tokenizer
    if study.data.train_tokenizer is not None:
        folder = Path(study.training.output_dir) / TOKENIZER_FOLDER
        if not folder.exists():
            return None, "the tokenizer is not trained yet; `hf-plasticity prepare` trains it"
        name = str(folder)
    try:
        return load_tokenizer(name), None
    except PlasticityError as error:
        return None, str(error).removeprefix("tokenizer: ")


def _vocab_size(study: ExperimentConfig, tokenizer: PreTrainedTokenizerBase | None, why_not: str | None) -> int:
    """Rows of the embedding. If the setting gives them, no tokenizer is needed."""
    if tokenizer is not None:
        return vocabulary(study, tokenizer)
    vocab_size = study.model.vocab_size or study.data.train_tokenizer
    if vocab_size is None:
        raise PlasticityError(f"tokenizer: {why_not}; alternatively give vocab_size")
    return vocab_size
