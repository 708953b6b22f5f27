"""The settings of `hf-plasticity probe --follow`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..arguments import SettingsParser
from ..data.config import DataConfig
from ..errors import PlasticityError
from ..published.config import BATCH, CHECKPOINTS, SuiteConfig
from ..settings import MACHINE, OUTPUT, setting


@dataclass
class DeferredConfig:
    """
    The run to probe, and the settings of this machine. The configuration of the run decides the probe.

    Args:
        model (`str`):
            The folder or the repository of a run with `probe: deferred`, complete or still training.
        follow (`bool`, *optional*, defaults to `True`):
            Probe its checkpoints as they appear, until the run is complete.
        poll_seconds (`float`, *optional*, defaults to 30.0):
            Seconds between two checks for new checkpoints.
        push_to_hub (`bool`, *optional*, defaults to `True`):
            For a repository: whether to upload the records.
        output_dir (`str`, *optional*):
            For a repository: the folder of the records. The records of a run in a folder go to that folder.
        share (`str`, *optional*):
            What several processes share: the `"batch"` (default) or `"checkpoints"`.
        per_device_train_batch_size (`int`, *optional*):
            Sequences in one forward pass; that of the run by default.
        cpu_threads (`int`, *optional*):
            CPU threads of each process; those of the run by default, because the last bits depend on them.
        data_dir, data_cache_dir, dataset (`str`, *optional*):
            The location of the run's text on this machine, if it differs.
    """

    model: str | None = setting(None, help="The folder or the repository of a run.", role=OUTPUT)
    follow: bool = setting(True, help="Probe the checkpoints of a run with probe: deferred.", role=OUTPUT)
    poll_seconds: float = setting(30.0, help="Seconds between two checks for new checkpoints.", role=OUTPUT)
    push_to_hub: bool = setting(True, help="For a repository: whether to upload the records.", role=OUTPUT)
    output_dir: str | None = setting(None, help="For a repository: the folder of the records.", role=OUTPUT)
    share: str = setting(BATCH, help="What several processes share: batch or checkpoints.", role=MACHINE)
    per_device_train_batch_size: int | None = setting(
        None, help="Sequences in one forward pass; that of the run by default.", role=MACHINE
    )
    cpu_threads: int | None = setting(None, help="CPU threads; those of the run by default.", role=MACHINE)
    data_dir: str | None = setting(None, help="Location of the run's local text on this machine.", role=MACHINE)
    data_cache_dir: str | None = setting(None, help="Folder of prepared blocks on this machine.", role=MACHINE)
    dataset: str | None = setting(None, help="Location of the run's dataset on this machine.", role=MACHINE)
    disable_tqdm: bool = setting(False, help="Show no progress bars.", role=OUTPUT)
    use_cpu: bool = setting(False, help="Use only the CPU.", role=MACHINE)


def parse_deferred(arguments: Sequence[str] | None = None, description: str | None = None) -> DeferredConfig:
    """
    Parse the run to probe from a command line.

    Raises:
        [`PlasticityError`]: An unknown setting, one that the run decides, or an invalid value.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    own = {one.name for one in dataclasses.fields(DeferredConfig)}
    for argument in arguments:
        name = argument.removeprefix("--").split("=")[0]
        decided = {one.name for kind in (SuiteConfig, DataConfig) for one in dataclasses.fields(kind)} - own
        if argument.startswith("--") and name in decided:
            raise PlasticityError(f"{name}: the configuration of the run decides it; leave it out with --follow")
    parser = SettingsParser(
        (DeferredConfig,),
        help={"config": "YAML file of settings."},
        prog="hf-plasticity probe",
        description=description,
    )
    [config] = parser.parse(arguments)
    if config.model is None:
        raise PlasticityError("model: missing; name the folder or the repository of a run")
    if not config.follow:
        raise PlasticityError("follow: False; leave it out to probe published checkpoints")
    if not config.poll_seconds > 0:
        raise PlasticityError(f"poll_seconds: {config.poll_seconds} is not a positive number")
    if config.share not in (CHECKPOINTS, BATCH):
        raise PlasticityError(f"share: '{config.share}' is unknown; choose {CHECKPOINTS} or {BATCH}")
    return config
