"""The settings of `hf-plasticity probe` for published checkpoints."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..arguments import SettingsParser
from ..data.config import DataConfig
from ..data.sources import source_class
from ..errors import PlasticityError
from ..network.head_loss import FUSED, LOGITS
from ..probing.config import ProbeConfig, probe_settings
from ..settings import LENGTH, MACHINE, OUTPUT, setting


CHECKPOINTS, BATCH = "checkpoints", "batch"
# Settings of the text that apply to training only.
TRAINING_ONLY = ("languages", "fresh_languages", "permute_tokens", "streaming", "train_tokenizer")
SuiteProbeSettings = probe_settings(
    steps=1_000,
    eval_sequences=128,
    dense_start=False,
    batch_size=16,
    learning_rate=1e-3,
    warmup_steps=0,
    lr_scheduler_type="constant_with_warmup",
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
    max_grad_norm=1.0,
    seed=0,
    repeats=1,
    adaptation="full",
    lora_rank=16,
    lora_alpha=32,
)


@dataclass
class SuiteConfig(SuiteProbeSettings):  # type: ignore[misc, valid-type]
    """
    The published checkpoints to probe, and the settings of the probe. All checkpoints get the same probe.

    Args:
        model (`str`):
            A repository on the Hub, a folder with a folder for each checkpoint, or the folder of one checkpoint.
        revisions (`list[str]`, *optional*):
            Branches or tags of the repository, or names of folders; also as patterns such as `step*`. By default all
            with a number in their name. The training step of a checkpoint is the number after `step` in its name, or
            the last number.
        every (`int`, *optional*, defaults to 1):
            Probe every n-th of them, from the first.
        step (`int`, *optional*):
            The training step of a single checkpoint whose name has no number.
        skip_damaged (`bool`, *optional*, defaults to `False`):
            Whether to leave out checkpoints that cannot be loaded, with a warning, instead of ending with an error.
        allow_duplicates (`bool`, *optional*, defaults to `False`):
            Whether two checkpoints may have the same weights. Published suites have had such branches by mistake.
        share (`str`, *optional*):
            What several processes share: `"checkpoints"` (each process probes some of them) or `"batch"` (all
            processes probe one checkpoint together). By default checkpoints, or the batch if Accelerate shards the
            model (FSDP).
        output_dir (`str`, *optional*):
            The run folder; `runs/probe-<model>` by default.
        tokens_per_step (`int`, *optional*):
            Training tokens of a step of the suite, for the records.
        per_device_train_batch_size (`int`, *optional*):
            Sequences in one forward pass; the whole share of the process by default.
        cpu_threads (`int`, *optional*):
            CPU threads of each process; by default all available cores, divided among the processes.
        bf16 (`bool`, *optional*, defaults to `False`):
            Mixed precision.
        head_loss (`str`, *optional*, defaults to `"logits"`):
            `"logits"`, or `"fused"`, which never keeps the logits of a whole batch in memory.
        diagnose (`bool`, *optional*, defaults to `False`):
            Whether to also diagnose every checkpoint, into `diagnostics.jsonl`, on validation sequences of the probe
            language. Distances from the initialization require a checkpoint of step 0.
        diagnostics_measures (`list[str]`, *optional*):
            Names from `hf_plasticity.diagnostics.MEASURES`; by default the cheap ones.
        diagnostics_sequences (`int`, *optional*, defaults to 64):
            Validation sequences of a diagnosis.
        allow_repeats (`bool`, *optional*, defaults to `False`):
            Whether the probe's text may be used again if there is too little.
        probe_... (*optional*):
            Every setting of [`ProbeConfig`] but `lr_scheduler_kwargs` and `lora_target_modules`; by default 1,000
            steps with an evaluation every hundredth of them.
    """

    model: str | None = setting(None, help="A repository on the Hub, a folder of checkpoints, or one checkpoint.")
    revisions: list[str] | None = setting(
        None, help="Branches, tags or folders, also as patterns such as step*; all by default.", role=LENGTH
    )
    every: int = setting(1, help="Probe every n-th checkpoint.", role=LENGTH)
    step: int | None = setting(
        None, help="Training step of a single checkpoint whose name has no number.", role=LENGTH
    )
    skip_damaged: bool = setting(
        False, help="Leave out checkpoints that cannot be loaded, with a warning.", role=LENGTH
    )
    allow_duplicates: bool = setting(False, help="Allow checkpoints with the same weights.", role=LENGTH)
    share: str | None = setting(
        None, help="What several processes share: checkpoints (default), or batch (default with FSDP2).", role=MACHINE
    )
    output_dir: str | None = setting(None, help="Run folder; runs/probe-<model> by default.", role=OUTPUT)
    tokens_per_step: int | None = setting(None, help="Training tokens of a step of the suite.")
    per_device_train_batch_size: int | None = setting(None, help="Sequences in one forward pass.", role=MACHINE)
    cpu_threads: int | None = setting(None, help="CPU threads of each process; all cores by default.", role=MACHINE)
    bf16: bool = setting(False, help="Mixed precision.")
    head_loss: str = setting("logits", help="logits, or fused (less memory).")
    diagnose: bool = setting(False, help="Also diagnose every checkpoint.", role=OUTPUT)
    diagnostics_measures: list[str] | None = setting(
        None, help="Measures of a diagnosis; by default the cheap ones.", role=OUTPUT
    )
    diagnostics_sequences: int = setting(64, help="Validation sequences of a diagnosis.", role=OUTPUT)
    allow_repeats: bool = setting(False, help="Whether the probe's text may be used again if there is too little.")
    disable_tqdm: bool = setting(False, help="Show no progress bars.", role=OUTPUT)
    use_cpu: bool = setting(False, help="Use only the CPU.", role=MACHINE)

    def probe_config(self) -> ProbeConfig:
        """The probe of every checkpoint."""
        return ProbeConfig.from_settings(
            self, eval_every=max(1, self.probe_steps // 100), allow_repeats=self.allow_repeats
        )


def parse_suite(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[SuiteConfig, DataConfig]:
    """
    Parse the suite to probe and its text from a command line.

    Raises:
        [`PlasticityError`]: An unknown setting, or an invalid value.
    """
    parser = SettingsParser(
        (SuiteConfig, DataConfig),
        refused=TRAINING_ONLY,
        help={"config": "YAML file of settings.", "tokenizer": "A Hub id or a folder; that of the suite by default."},
        prog="hf-plasticity probe",
        description=description,
    )
    parser.set_defaults(tokenizer=None)
    suite, data = parser.parse(sys.argv[1:] if arguments is None else arguments)
    if suite.model is None:
        raise PlasticityError("model: missing; name a repository on the Hub, or a folder of checkpoints")
    for name in ("every", "diagnostics_sequences", "tokens_per_step", "per_device_train_batch_size"):
        if getattr(suite, name) is not None and getattr(suite, name) < 1:
            raise PlasticityError(f"{name}: {getattr(suite, name)} is not a positive number")
    if suite.step is not None and suite.step < 0:
        raise PlasticityError(f"step: {suite.step} is negative; use 0 or more")
    for name in TRAINING_ONLY:
        if getattr(data, name):
            raise PlasticityError(f"{name}: it applies to training; leave it out")
    if suite.head_loss not in (LOGITS, FUSED):
        raise PlasticityError(f"head_loss: '{suite.head_loss}' is unknown; choose {LOGITS} or {FUSED}")
    if suite.share not in (None, CHECKPOINTS, BATCH):
        raise PlasticityError(f"share: '{suite.share}' is unknown; choose {CHECKPOINTS} or {BATCH}")
    data.probe_language = data.probe_language or source_class(data.source).default_probe_language
    suite.probe_config()
    suite.output_dir = suite.output_dir or f"runs/probe-{Path(suite.model).resolve().name}"
    if _is_one_checkpoint(Path(suite.model)):
        if suite.revisions:
            raise PlasticityError(
                f"revisions: '{suite.model}' is one checkpoint; leave them out, or give the folder above it"
            )
        folder = Path(suite.model).resolve()
        suite.model, suite.revisions = str(folder.parent), [glob.escape(folder.name)]
    return suite, data


def _is_one_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint without further checkpoints in it. The output folder of a Trainer has both."""
    return (folder / "config.json").is_file() and not any(folder.glob("*/config.json"))
