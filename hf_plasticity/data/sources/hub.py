"""Documents streamed from a dataset on the Hub, or from a dataset repository in a folder."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi

from ...errors import PlasticityError, one_line
from ...hub_errors import explain_hub_error
from ..schedule import LANGUAGES, PROBE_LANGUAGE
from .base import BATCH_CHARACTERS, Source, hash_files, shuffled_range


if TYPE_CHECKING:
    import datasets

    from ..config import DataConfig

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FORMAT_VERSION = 1  # increase it when the same dataset gives other documents or another order

_NINE = (*LANGUAGES, PROBE_LANGUAGE)
# Preset: language -> (repository, configuration).
HUB_PRESETS: dict[str, dict[str, tuple[str, str]]] = {
    "culturax": {language: ("uonlp/CulturaX", language) for language in _NINE},
    "c4": {language: ("allenai/c4", language) for language in _NINE},
    "fineweb-2": {
        "en": ("HuggingFaceFW/fineweb", "default"),  # FineWeb-2 is FineWeb for the languages other than English
        "zh": ("HuggingFaceFW/fineweb-2", "cmn_Hani"),
        "fr": ("HuggingFaceFW/fineweb-2", "fra_Latn"),
        "ja": ("HuggingFaceFW/fineweb-2", "jpn_Jpan"),
        "es": ("HuggingFaceFW/fineweb-2", "spa_Latn"),
        "de": ("HuggingFaceFW/fineweb-2", "deu_Latn"),
        "pt": ("HuggingFaceFW/fineweb-2", "por_Latn"),
        "ru": ("HuggingFaceFW/fineweb-2", "rus_Cyrl"),
        "vi": ("HuggingFaceFW/fineweb-2", "vie_Latn"),
    },
    "wikipedia": {language: ("wikimedia/wikipedia", f"20231101.{language}") for language in _NINE},
}


class HubSource(Source):
    """
    Documents of a dataset with one configuration per language, streamed with `datasets`. The files of a configuration
    are read in a fixed shuffled order (many corpora are sorted by the date of the crawl), the documents of a file in
    their original order. No code from the repository is executed.

    A branch is resolved to its commit when the dataset is first used, so the text cannot change during a run. Starting
    from a state skips the earlier files, and in Parquet the earlier row groups; a file in another format is read again
    from its beginning.

    Args:
        dataset (`str`): A name of `HUB_PRESETS`, a dataset on the Hub (`org/name`, or `org/name@revision`), or a
            folder with a dataset repository.
        configs (`dict[str, str]` or `str`, *optional*): The configuration of each language, or a template such as
            `"20231101.{language}"`. By default the language code. Not for presets.
        split (`str`, *optional*, defaults to `"train"`): The split of the dataset to read.
        text_column (`str`, *optional*, defaults to `"text"`): The column with the document.
        revision (`str`, *optional*): A branch, tag or commit on the Hub; by default the default branch.
        commits (`dict[str, str]`, *optional*): The commit of each repository, instead of that of the revision.

    Raises:
        [`PlasticityError`]: `configs` does not fit the dataset.
    """

    remote = True
    settings = ("dataset", "dataset_commits", "dataset_configs", "text_column")

    def __init__(
        self,
        dataset: str,
        configs: Mapping[str, str] | str | None = None,
        split: str = "train",
        text_column: str = "text",
        revision: str | None = None,
        commits: Mapping[str, str] | None = None,
    ):
        if configs is not None and dataset in HUB_PRESETS:
            raise PlasticityError(
                f"dataset_configs: '{dataset}' is a preset and has its own configurations; remove dataset_configs, "
                f"or name a dataset, such as '{HUB_PRESETS[dataset]['fr'][0]}'"
            )
        if isinstance(configs, str) and "{language}" not in configs:
            raise PlasticityError(
                f"dataset_configs: '{configs}' is the same for every language; write {{language}} where its code "
                "goes, or map each language to its configuration"
            )
        if revision is None and "@" in dataset and not os.path.isdir(dataset):
            dataset, revision = dataset.split("@", 1)
        if revision is not None and os.path.isdir(dataset):
            raise PlasticityError(f"revision: '{revision}' cannot be chosen in the folder '{dataset}'; remove it")
        self.dataset = dataset
        self.configs = configs
        self.split = split
        self.text_column = text_column
        self.revision = revision
        self._commits = dict(commits or {})
        self._builders: dict[str, datasets.DatasetBuilder] = {}

    @classmethod
    def from_config(cls, config: "DataConfig") -> "HubSource":
        if config.dataset is None:
            raise PlasticityError(
                f"dataset: missing; the source 'hub' requires a preset ({', '.join(HUB_PRESETS)}) or a dataset, as "
                "'org/name'"
            )
        configs: Mapping[str, str] | str | None = config.dataset_configs
        # A template may also begin with a brace.
        if isinstance(configs, str) and configs.lstrip().startswith("{") and not configs.startswith("{language}"):
            configs = _mapping("dataset_configs", configs)
        commits = None if config.dataset_commits is None else _mapping("dataset_commits", config.dataset_commits)
        return cls(config.dataset, configs, text_column=config.text_column, commits=commits)

    def resolved_settings(self) -> dict[str, Any]:
        return {"dataset_commits": json.dumps(self._commits, sort_keys=True)} if self._commits else {}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> str:
        names = [f"[{name}](https://huggingface.co/datasets/{name})" for name in cls.hub_datasets(settings)]
        return " and ".join(names) or str(settings.get("dataset", "a dataset that the records do not name"))

    @classmethod
    def hub_datasets(cls, settings: Mapping[str, Any]) -> list[str]:
        dataset = settings.get("dataset", "")
        if dataset not in HUB_PRESETS:
            name = dataset.split("@")[0]
            return [name] if REPOSITORY.fullmatch(name) and not os.path.isdir(dataset) else []
        preset = HUB_PRESETS[dataset]
        used = [*settings.get("languages", []), settings.get("probe_language")]
        return list(dict.fromkeys(preset[language][0] for language in used if language in preset))

    def fingerprint(self, language: str) -> str:
        repository, config = self._repository(language)
        files = self._files(language)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"hub {FORMAT_VERSION}\0{config}\0{self.split}\0{self.text_column}\0".encode())
        if os.path.isdir(repository):
            digest.update(hash_files(map(Path, files), Path(os.path.abspath(repository))))
        else:
            digest.update(f"{repository}@{self._commits[repository]}".encode())
        return digest.hexdigest()

    def batches(
        self, language: str, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any]]]:
        documents: list[str] = []
        start, characters = None, 0
        for position, document in self._documents(language, state or {"file": 0, "part": 0, "row": 0}):
            if not documents:
                start = position
            documents.append(document)
            characters += len(document)
            if characters >= BATCH_CHARACTERS:
                yield documents, start
                documents, characters = [], 0
        if documents:
            yield documents, start
        elif start is None and state is None:
            raise PlasticityError(f"dataset: '{self.dataset}' has no documents for '{language}'")

    def _documents(self, language: str, first: dict[str, int]) -> Iterator[tuple[dict[str, int], str]]:
        """
        Documents from the position `first`, each with its own position: file in the shuffled order, row group of the
        file, row of the row group.
        """
        files = self._files(language)
        with self._explained(language):
            stream = self._builders[language].as_streaming_dataset(self.split)
        self._check(stream, language)
        stream = stream.select_columns([self.text_column])
        order = shuffled_range(len(files), 0)
        first_part, first_row = first["part"], first["row"]
        for file in range(first["file"], len(files)):
            with self._explained(language, files[order[file]]):
                # `reshard` makes each row group of a Parquet file a shard; files of other formats are one shard.
                parts = stream.shard(num_shards=len(files), index=order[file]).reshard()
                for part in range(first_part, parts.num_shards):
                    rows = parts.shard(num_shards=parts.num_shards, index=part)
                    for row, example in enumerate(islice(rows, first_row, None), first_row):
                        text = example[self.text_column]
                        if text is not None and not isinstance(text, str):
                            raise PlasticityError(
                                f"dataset: column '{self.text_column}' of '{self.dataset}' holds "
                                f"{type(text).__name__}, not strings"
                            )
                        if text and not text.isspace():
                            yield {"file": file, "part": part, "row": row}, text
                    first_row = 0
            first_part = 0

    def _repository(self, language: str) -> tuple[str, str]:
        """Repository and configuration of a language."""
        if self.dataset in HUB_PRESETS:
            preset = HUB_PRESETS[self.dataset]
            if language not in preset:
                raise PlasticityError(
                    f"languages: the preset '{self.dataset}' has no '{language}', only {', '.join(preset)}; for "
                    f"other languages name a dataset, such as '{preset['fr'][0]}', with dataset_configs"
                )
            return preset[language]
        if isinstance(self.configs, str):
            return self.dataset, self.configs.replace("{language}", language)
        return self.dataset, (self.configs or {}).get(language, language)

    def _files(self, language: str) -> list[str]:
        """The data files of a language, as `datasets` lists them."""
        import datasets  # slow

        repository, config = self._repository(language)
        if language not in self._builders:
            with self._explained(language):
                commit = self._commit(repository)
                names = datasets.get_dataset_config_names(repository, revision=commit)
                if config in names:
                    self._builders[language] = datasets.load_dataset_builder(repository, config, revision=commit)
            if config not in names:
                raise PlasticityError(
                    f"dataset: '{repository}' has no configuration '{config}' for '{language}'; it has "
                    f"{_some(names)}; map the language to one of them with dataset_configs"
                )
        files = self._builders[language].config.data_files
        if self.split not in files:
            raise PlasticityError(
                f"dataset: '{repository}' has no split '{self.split}' (it has {_some(list(files))}); choose another "
                "dataset"
            )
        return list(files[self.split])

    def _commit(self, repository: str) -> str | None:
        """The commit of a repository on the Hub; none for a folder."""
        if os.path.isdir(repository):
            return None
        if repository not in self._commits:
            self._commits[repository] = HfApi().dataset_info(repository, revision=self.revision).sha
        return self._commits[repository]

    def _check(self, stream: "datasets.IterableDataset", language: str) -> None:
        if stream.column_names is not None and self.text_column not in stream.column_names:
            raise PlasticityError(
                f"dataset: '{self.dataset}' has no column '{self.text_column}' for '{language}'; its columns are "
                f"{', '.join(stream.column_names)}; choose one with text_column"
            )
        if stream.num_shards != len(self._files(language)):
            raise PlasticityError(
                f"dataset: '{self.dataset}' is in a format that cannot be read file by file; use a dataset in Parquet "
                "or JSON Lines"
            )

    @contextlib.contextmanager
    def _explained(self, language: str, file: str | None = None) -> Iterator[None]:
        try:
            yield
        except PlasticityError:
            raise
        except Exception as error:
            repository, config = self._repository(language)
            reason = explain_hub_error(repository, "dataset", error)
            where = f"'{file}'" if file else f"'{repository}' (configuration '{config}')"
            raise PlasticityError(f"dataset: {reason or f'{where} cannot be read: {one_line(error)}'}") from error


def _mapping(name: str, value: str) -> dict[str, str]:
    """A setting that is a JSON object."""
    try:
        mapping = json.loads(value)
    except json.JSONDecodeError as error:
        raise PlasticityError(f"{name}: '{value}' is not valid JSON: {error}") from None
    if not isinstance(mapping, dict):
        raise PlasticityError(f"{name}: '{value}' is not a JSON object")
    return mapping


def _some(names: list[str], most: int = 20) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
