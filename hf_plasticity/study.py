"""A study's configuration: what the recipes and the command line share."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arguments import StudyArgumentParser
from .data.config import DataConfig
from .data.schedule import LANGUAGES, PROBE_LANGUAGE, make_schedule
from .data.sources import SYNTHETIC_LANGUAGES, SYNTHETIC_PROBE_LANGUAGE
from .errors import PlasticityError
from .models import model_size, peak_learning_rate
from .trainer import ContinualConfig


# The settings that decide over a run's numbers: a run folder belongs to one set of their values. The others say how
# long the run is, what it is computed on, and what is kept of it.
IDENTITY = (
    "size", "vocab_size", "source", "dataset", "dataset_configs", "text_column", "languages", "probe_language",
    "validation_fraction", "tokenizer", "train_tokenizer", "context_length", "schedule", "blend", "task_steps",
    "global_batch_tokens", "allow_repeats", "reset_optimizer", "no_probe", "probe_every_cycles", "probe_steps",
    "probe_eval_every", "probe_eval_sequences", "probe_dense_start", "probe_learning_rate", "probe_warmup_steps",
    "probe_adaptation", "probe_lora_rank", "probe_seed", "probe_repeats", "learning_rate", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs",
    "warmup_steps", "optim", "optim_args", "seed", "data_seed", "bf16", "tf32", "label_smoothing_factor",
)  # fmt: skip
# Computed from the others on the machine at hand, so they are not settings to pass back.
DERIVED = (
    "max_steps", "num_train_epochs", "gradient_accumulation_steps", "local_rank", "per_device_train_batch_size",
    "use_cpu",
)  # fmt: skip
TRANSFORMERS_OUTPUT_DIR = "trainer_output"


@dataclass
class ModelConfig:
    """
    Which model is trained, from scratch.

    Args:
        size (`str`, *optional*, defaults to `"100K"`):
            A name of `MODEL_SIZES`: the paper's `5M` to `314M`, or of the micro ladder below them.
        vocab_size (`int`, *optional*, defaults to the tokenizer's length):
            Rows of the embedding, to round it up (the paper: 151,680).
    """

    size: str = field(default="100K", metadata={"help": "Model size: 25K to 2.5M (micro), 5M to 314M (the paper)."})
    vocab_size: int | None = field(
        default=None, metadata={"help": "Rows of the embedding; the tokenizer's length by default."}
    )


@dataclass
class Study:
    """
    A run to be, every default resolved.

    Args:
        model ([`ModelConfig`]): Which model.
        data ([`DataConfig`]): On which text.
        training ([`ContinualConfig`]): How it is trained and probed.
    """

    model: ModelConfig
    data: DataConfig
    training: ContinualConfig

    def settings(self) -> dict[str, Any]:
        """The configuration as flat settings, as in `config.yaml`: passed back with `--config`, they give the run."""
        training = {name: value for name, value in self.training.to_dict().items() if name not in DERIVED}
        if self.training.micro_batch_size is not None:
            training["per_device_train_batch_size"] = self.training.micro_batch_size
        settings = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.data), **training}
        return {
            name: value
            for name, value in settings.items()
            if value not in (None, {}, []) and not name.endswith("_token")
        }

    def identity(self) -> dict[str, Any]:
        """The part of the settings that decides over the run's numbers."""
        settings = self.settings()
        return {name: settings.get(name) for name in IDENTITY}


def parse_study(
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Study:
    """
    The study that a command line asks for.

    Args:
        arguments (`Sequence[str]`, *optional*): The command line without the program's name; `sys.argv` by default.
        description (`str`, *optional*): For `--help`.
        settings (`Mapping[str, Any]`, *optional*): What `--config` would hold, such as the configuration of a run.

    Returns:
        [`Study`]: With every default resolved.

    Raises:
        [`PlasticityError`]: An unknown setting, or a value that cannot be.
    """
    parser = StudyArgumentParser((ModelConfig, DataConfig, ContinualConfig), description=description)
    model, data, training = parser.parse(sys.argv[1:] if arguments is None else arguments, settings)
    model_size(model.size)
    synthetic = data.source == "synthetic"
    data.languages = data.languages or list(SYNTHETIC_LANGUAGES if synthetic else LANGUAGES)
    data.probe_language = data.probe_language or (SYNTHETIC_PROBE_LANGUAGE if synthetic else PROBE_LANGUAGE)
    if data.probe_language in data.languages:
        raise PlasticityError(
            f"probe_language: '{data.probe_language}' is among the training languages; it has to be held out"
        )
    make_schedule(training.schedule, data.languages, task_slots=1, blend=training.blend)
    if training.learning_rate is None:
        training.learning_rate = peak_learning_rate(model.size)
    if training.probe_learning_rate is None:
        training.probe_learning_rate = training.learning_rate
    if training.output_dir == TRANSFORMERS_OUTPUT_DIR:
        schedule = training.schedule.replace(",", "-")
        training.output_dir = f"runs/{model.size}-{schedule}-{data.source}-seed{training.seed}"
    return Study(model, data, training)
