from dataclasses import dataclass

from ..settings import MACHINE, setting


@dataclass
class DataConfig:
    """
    The text of a run.

    > Parameters that choose the text

    Args:
        source (`str`, *optional*, defaults to `"synthetic"`):
            `"synthetic"` (generated languages, no download), `"local"` (a folder, see `data_dir`) or `"hub"` (a
            dataset, see `dataset`).
        data_dir (`str`, *optional*):
            For `"local"`: a folder of `<language>.parquet`, `.jsonl` or `.txt`, or of such files in `<language>/`.
        dataset (`str`, *optional*):
            For `"hub"`: `culturax`, `c4`, `fineweb-2`, `wikipedia`, or any dataset by name or folder.
        dataset_configs (`dict` or `str`, *optional*):
            For `"hub"`: the dataset's configuration for each language if it is not the language code, as a mapping or
            as a template such as `"20231101.{language}"`.
        dataset_commits (`str`, *optional*):
            For `"hub"`: the commit of each repository, as JSON. By default the newest, or that of the revision in
            `dataset`. `config.yaml` has those of the run.
        text_column (`str`, *optional*, defaults to `"text"`):
            For `"local"` and `"hub"`: the field of a document with its text.
        languages (`list[str]`, *optional*):
            The training languages in the order of a cycle. By default the eight of the paper, or eight synthetic ones.
        probe_language (`str`, *optional*):
            The held-out language. By default Vietnamese, or a ninth synthetic one.
        fresh_languages (`bool`, *optional*, defaults to `False`):
            For `"synthetic"`: trains every cycle on new languages. Cycle n replaces `syn1` with `syn1.<n>`, and so on.
            The probe language stays the same.
        validation_fraction (`float`, *optional*, defaults to 0.05):
            Share of the documents of each language, chosen by a hash of their text, that is held out of training for
            evaluation.

    > Parameters that convert text to blocks

    Args:
        tokenizer (`str`, *optional*, defaults to `"byte"`):
            `"byte"`, a Hub id, or a folder.
        train_tokenizer (`int`, *optional*):
            Trains a byte-level BPE tokenizer with this many tokens on the languages of the run instead, and saves it
            in the run folder.
        context_length (`int`, *optional*, defaults to 128):
            Tokens in a sequence (the paper: 2,048).
        permute_tokens (`bool`, *optional*, defaults to `False`):
            Applies a separate random permutation of the vocabulary to each task instance (permuted MNIST, for text).
            The permutation depends on the seed and the task instance. Special tokens, including the end-of-text token,
            and the text of probes and evaluations are not permuted.
        data_cache_dir (`str`, *optional*):
            The folder of prepared blocks. By default `hf_plasticity/` in the Hugging Face cache.
        streaming (`bool`, *optional*, defaults to `False`):
            Prepares the blocks of a task instance when it starts and deletes them one task instance later, for corpora
            that do not fit on the disk.
    """

    source: str = setting("synthetic", help="synthetic, local or hub.")
    data_dir: str | None = setting(help="For --source local: the folder of the text.", role=MACHINE)
    dataset: str | None = setting(
        help="For --source hub: culturax, c4, fineweb-2, wikipedia, or any dataset by name or folder."
    )
    dataset_configs: str | None = setting(
        help="For --source hub: language to configuration, as a mapping (JSON) or a {language} template."
    )
    dataset_commits: str | None = setting(
        help="For --source hub: the commit of each repository, as JSON; the newest by default.", role=MACHINE
    )
    text_column: str = setting("text", help="For --source local or hub: the field of a document that holds its text.")
    languages: list[str] | None = setting(
        help="Training languages in the order of a cycle; by default the eight of the paper, or eight synthetic ones."
    )
    probe_language: str | None = setting(help="The held-out language; by default Vietnamese, or a synthetic one.")
    fresh_languages: bool = setting(False, help="For --source synthetic: train every cycle on new languages.")
    validation_fraction: float = setting(
        0.05, help="Share of the documents of each language that is held out for evaluation."
    )
    tokenizer: str = setting("byte", help="byte, a Hub id, or a folder.")
    train_tokenizer: int | None = setting(
        help="Train a byte-level BPE tokenizer with this many tokens on the languages of the run."
    )
    context_length: int = setting(128, help="Tokens in a sequence.")
    permute_tokens: bool = setting(
        False, help="Apply a separate random permutation of the vocabulary to each task instance."
    )
    data_cache_dir: str | None = setting(
        help="The folder of prepared blocks; in the Hugging Face cache by default.", role=MACHINE
    )
    streaming: bool = setting(
        False, help="Prepare the blocks of a task instance when it starts and delete them later.", role=MACHINE
    )
