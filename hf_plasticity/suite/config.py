"""What `recipes/probe.py` is told: which checkpoints to probe, and how."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import StudyArgumentParser
from ..data.config import DataConfig
from ..data.schedule import PROBE_LANGUAGE
from ..data.sources import SYNTHETIC_PROBE_LANGUAGE
from ..errors import PlasticityError
from ..probing import ProbeConfig


CHECKPOINTS, BATCH = "checkpoints", "batch"
# With --follow, what is not for the followed run to say.
OF_THE_FOLLOWER = (
    "model", "follow", "poll_seconds", "push_to_hub", "output_dir", "share", "per_device_train_batch_size",
    "disable_tqdm", "use_cpu", "data_dir", "data_cache_dir", "dataset",
)  # fmt: skip


@dataclass
class SuiteConfig:
    """
    Which checkpoints are probed, and how. Every checkpoint sees the same probe.

    Args:
        model (`str`):
            A repository on the Hub, or a folder with a folder for each checkpoint.
        revisions (`list[str]`, *optional*):
            Branches or tags of the repository, or names of the folders; also as patterns such as `step*`. By default
            all whose name holds a number. A checkpoint's place is the number after `step` in its name, or its last.
        every (`int`, *optional*, defaults to 1):
            Takes every so many of them, from the first.
        allow_duplicates (`bool`, *optional*, defaults to `False`):
            Whether two checkpoints may hold the same weights. Published suites have had such branches by mistake, and
            what they show is not the training.
        follow (`bool`, *optional*, defaults to `False`):
            `model` is a run with `probe: deferred`, under way or finished: probes its cycles as they appear, as its
            own configuration says, until it is finished and all are probed.
        poll_seconds (`float`, *optional*, defaults to 30.0):
            With `follow`: how often to look for new cycles.
        push_to_hub (`bool`, *optional*, defaults to `True`):
            With `follow` and a repository: whether the records go there too.
        share (`str`, *optional*):
            What several processes share: `"checkpoints"`, so that each probes some of them, as a single process would;
            or the `"batch"`, so that all probe one together, each its part of every batch. By default checkpoints,
            and the batch where Accelerate shards the model (FSDP) or a run is followed.
        output_dir (`str`, *optional*):
            The run folder; `runs/probe-<model>` by default, and that of the run where one in a folder is followed.
        tokens_per_step (`int`, *optional*):
            Training tokens of a step of the suite, so that the records know how much its models had seen.
        per_device_train_batch_size (`int`, *optional*):
            Sequences in one forward; the whole share of the process by default.
        bf16 (`bool`, *optional*, defaults to `False`):
            Mixed precision.
        diagnose (`bool`, *optional*, defaults to `False`):
            Whether to look inside every checkpoint too, into `diagnostics.jsonl`, on the probe language's validation
            sequences. Distances from the initialization are measured where a checkpoint of step 0 is among them.
        diagnostics_sequences (`int`, *optional*, defaults to 64):
            How many of them.
        probe_steps (`int`, *optional*, defaults to 1000):
            As all below, a field of [`ProbeConfig`].
    """

    model: str | None = field(default=None, metadata={"help": "A repository on the Hub, or a folder of checkpoints."})
    revisions: list[str] | None = field(
        default=None, metadata={"help": "Branches, tags or folders, also as patterns such as step*; all by default."}
    )
    every: int = field(default=1, metadata={"help": "Take every so many of them."})
    allow_duplicates: bool = field(default=False, metadata={"help": "Let checkpoints hold the same weights."})
    follow: bool = field(default=False, metadata={"help": "Probe the cycles of a run with probe: deferred."})
    poll_seconds: float = field(default=30.0, metadata={"help": "With --follow: how often to look for new cycles."})
    push_to_hub: bool = field(
        default=True, metadata={"help": "With --follow of a repository: send the records there."}
    )
    share: str | None = field(
        default=None, metadata={"help": "What several processes share: checkpoints, or the batch of one at a time."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Run folder."})
    tokens_per_step: int | None = field(default=None, metadata={"help": "Training tokens of a step of the suite."})
    per_device_train_batch_size: int | None = field(default=None, metadata={"help": "Sequences in one forward."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision."})
    diagnose: bool = field(default=False, metadata={"help": "Look inside every checkpoint too."})
    diagnostics_sequences: int = field(default=64, metadata={"help": "Validation sequences of a diagnosis."})
    probe_steps: int = field(default=1_000, metadata={"help": "Optimizer steps of a probe."})
    probe_eval_every: int | None = field(default=None, metadata={"help": "Steps between evaluations; a hundredth."})
    probe_eval_sequences: int = field(default=128, metadata={"help": "Validation sequences of an evaluation."})
    probe_dense_start: bool = field(default=False, metadata={"help": "Evaluate also after 1, 2, 4, ... steps."})
    probe_batch_size: int = field(default=16, metadata={"help": "Sequences in an optimizer step of the probe."})
    probe_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the probe."})
    probe_warmup_steps: int = field(default=0, metadata={"help": "Warmup of the probe."})
    probe_weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of the probe."})
    probe_adaptation: str = field(default="full", metadata={"help": "full or lora."})
    probe_lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters of a lora probe."})
    probe_seed: int = field(default=0, metadata={"help": "Order of the probe's data."})
    probe_repeats: int = field(default=1, metadata={"help": "Probes of each checkpoint, for error bars."})
    allow_repeats: bool = field(default=False, metadata={"help": "Let the probe's text start again when it runs out."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave accelerators alone."})

    def probe_config(self) -> ProbeConfig:
        """The probe that every checkpoint gets."""
        return ProbeConfig(
            steps=self.probe_steps,
            eval_every=self.probe_eval_every or max(1, self.probe_steps // 100),
            allow_repeats=self.allow_repeats,
            **{
                name: getattr(self, f"probe_{name}")
                for name in ("eval_sequences", "dense_start", "batch_size", "learning_rate", "warmup_steps",
                             "weight_decay", "adaptation", "lora_rank", "seed", "repeats")
            },
        )  # fmt: skip


def parse_suite(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[SuiteConfig, DataConfig]:
    """
    The suite that a command line asks to probe, and the text to probe it with.

    Raises:
        [`PlasticityError`]: An unknown setting, or a value that cannot be.
    """
    parser = StudyArgumentParser((SuiteConfig, DataConfig), description=description)
    parser.set_defaults(tokenizer=None)
    suite, data = parser.parse(sys.argv[1:] if arguments is None else arguments)
    if suite.model is None:
        raise PlasticityError("model: none given; name a repository on the Hub, or a folder of checkpoints")
    if suite.every < 1:
        raise PlasticityError(f"every: {suite.every} is not a positive number of checkpoints")
    for name in ("poll_seconds", "diagnostics_sequences"):
        if not getattr(suite, name) > 0:
            raise PlasticityError(f"{name}: {getattr(suite, name)} is not a positive number")
    if suite.share not in (None, CHECKPOINTS, BATCH):
        raise PlasticityError(f"share: '{suite.share}' is unknown; choose {CHECKPOINTS} or {BATCH}")
    if suite.follow:
        _check_following(suite, data)
        return suite, data
    data.probe_language = data.probe_language or (
        SYNTHETIC_PROBE_LANGUAGE if data.source == "synthetic" else PROBE_LANGUAGE
    )
    suite.output_dir = suite.output_dir or f"runs/probe-{Path(suite.model).name}"
    return suite, data


def _check_following(suite: SuiteConfig, data: DataConfig) -> None:
    """A follower's probe is the run's: what else is given would not be heeded."""
    for given, default in ((suite, SuiteConfig()), (data, DataConfig(tokenizer=None))):
        for setting in dataclasses.fields(given):
            value = getattr(given, setting.name)
            if setting.name not in OF_THE_FOLLOWER and value != getattr(default, setting.name):
                raise PlasticityError(
                    f"{setting.name}: {value} would not be heeded; with --follow the run's own configuration says it"
                )
