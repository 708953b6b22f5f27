"""The configuration of a run: model, text and training, from a command line and YAML."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import SettingsParser
from ..data.blocks import check_context_length
from ..data.config import DataConfig
from ..data.schedule import make_schedule
from ..data.sources import source_class
from ..errors import PlasticityError
from ..models import model_size, peak_learning_rate
from ..settings import DERIVED, NUMERICS, PRIVATE, roles_of, setting
from ..trainer import ContinualConfig
from ..trainer.training_arguments import REFUSED, ROLES


TRANSFORMERS_OUTPUT_DIR = "trainer_output"
FRESH_LANGUAGE = re.compile(r"(.+)\.(\d+)")
# Settings of Transformers with another default, or another meaning.
HELP = {
    "output_dir": "Run folder; runs/<size>-<schedule>-<source>-seed<seed> by default.",
    "push_to_hub": "Upload the records and the probed models while the run trains.",
    "hub_model_id": "Repository of the upload, org/name; the name of the run folder by default.",
}


@dataclass
class ModelConfig:
    """
    The model that is trained from scratch.

    Args:
        size (`str`, *optional*, defaults to `"100K"`):
            A name of `MODEL_SIZES`: the paper's `5M` to `314M`, or of the micro ladder below them.
        vocab_size (`int`, *optional*, defaults to the tokenizer's highest token id plus one):
            Rows of the embedding, for example rounded up (the paper: 151,680).
    """

    size: str = setting("100K", help="Model size: 1.8K to 2.5M (micro), 5M to 314M (the paper).")
    vocab_size: int | None = setting(
        None, help="Rows of the embedding; as many as the tokenizer has token ids by default."
    )


@dataclass
class ExperimentConfig:
    """
    The configuration of a run, with every default resolved.

    Args:
        model ([`ModelConfig`]): The model.
        data ([`DataConfig`]): The text.
        training ([`ContinualConfig`]): The training and its probes.
    """

    model: ModelConfig
    data: DataConfig
    training: ContinualConfig

    @property
    def roles(self) -> dict[str, str]:
        """The role of every setting."""
        return roles_of(self.model) | roles_of(self.data) | roles_of(self.training, ROLES)

    def settings(self) -> dict[str, Any]:
        """The flat settings of `config.yaml`: with `--config`, they repeat the run."""
        training = self.training.to_dict()
        training["per_device_train_batch_size"] = self.training.micro_batch_size
        batch_size = self.training.global_batch_tokens // self.data.context_length
        training |= self.training.probe_config(max(1, batch_size)).as_settings()
        settings = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.data), **training}
        return {
            name: settings[name]
            for name, role in self.roles.items()
            if role not in (PRIVATE, DERIVED) and settings[name] not in (None, {}, [])
        }

    def numerics(self) -> dict[str, Any]:
        """The settings that affect the results. They identify the run."""
        roles = self.roles
        return {name: value for name, value in self.settings().items() if roles[name] == NUMERICS}


def _check_fresh_languages(languages: Sequence[str], probe_language: str) -> None:
    """Cycle n ≥ 2 trains on `"<language>.<n>"`, so that these names must not be used otherwise."""
    for language in languages:
        if FRESH_LANGUAGE.fullmatch(language):
            raise PlasticityError(
                f"languages: '{language}' has a number after a dot, as the new languages of later cycles with "
                "fresh_languages have; use names without one"
            )
    match = FRESH_LANGUAGE.fullmatch(probe_language)
    if match and match[1] in languages:
        raise PlasticityError(
            f"probe_language: with fresh_languages, cycle {match[2]} trains on '{probe_language}'; the probe language "
            "must be held out"
        )


def parse_experiment(
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ExperimentConfig:
    """
    Parse the configuration of a run from a command line.

    Args:
        arguments (`Sequence[str]`, *optional*): The command line without the program's name; `sys.argv` by default.
        description (`str`, *optional*): For `--help`.
        settings (`Mapping[str, Any]`, *optional*): Settings that `--config` and the command line override, such as the
            configuration of a run.

    Returns:
        [`ExperimentConfig`]: With every default resolved.

    Raises:
        [`PlasticityError`]: An unknown setting, or an invalid value.
    """
    parser = SettingsParser(
        (ModelConfig, DataConfig, ContinualConfig),
        refused=tuple(REFUSED),
        help=HELP,
        prog="hf-plasticity train",
        description=description,
    )
    model, data, training = parser.parse(sys.argv[1:] if arguments is None else arguments, settings)
    model_size(model.size)
    check_context_length(data.context_length)
    source = source_class(data.source)
    data.languages = data.languages or list(source.default_languages)
    data.probe_language = data.probe_language or source.default_probe_language
    if data.probe_language in data.languages:
        raise PlasticityError(
            f"probe_language: '{data.probe_language}' is also a training language; the probe language must be held out"
        )
    if training.evaluate_forgetting and (data.permute_tokens or data.fresh_languages):
        name = "permute_tokens" if data.permute_tokens else "fresh_languages"
        raise PlasticityError(
            f"evaluate_forgetting: it uses the text of the first cycle, which a run with {name} does not train on "
            "again; leave one of the two out"
        )
    if data.fresh_languages and data.train_tokenizer is not None:
        raise PlasticityError(
            "train_tokenizer: not supported with fresh_languages, because the tokenizer would be trained on the "
            "languages of the first cycle only; use the byte tokenizer"
        )
    if data.fresh_languages:
        _check_fresh_languages(data.languages, data.probe_language)
    make_schedule(training.schedule, data.languages, task_slots=1, blend=training.blend)
    if training.learning_rate is None:
        training.learning_rate = peak_learning_rate(model.size)
    if training.output_dir == TRANSFORMERS_OUTPUT_DIR:
        schedule = training.schedule.replace(",", "-")
        training.output_dir = f"runs/{model.size}-{schedule}-{data.source}-seed{training.seed}"
    return ExperimentConfig(model, data, training)
