"""The results of one run of a comparison, read from its folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ..errors import PlasticityError
from ..records import LOG_FILE, PROVENANCE, RunRecord, read_run


# Must match the errors of the trainer and of the probe.
DIVERGENCE = re.compile(r"error: .*(loss is -?(nan|inf)|weights are not finite)")


@dataclass(frozen=True)
class Result:
    """
    The numbers of a run.

    Args:
        auc (`float`): The AUC of the probe at the step of the comparison.
        delta_auc (`float`): The ΔAUC of the same probe.
        untrained_auc (`float`): The AUC of the probe before the first step.
        training_loss (`float`): The mean over the last cycle.
        forgetting_loss (`float`, *optional*): The mean validation loss on the training languages at that step.
        ms_per_step (`float`, *optional*): The median time of an optimizer step.
        touched (`int`): Units or entries that the mitigation reset or changed.
        state_bytes (`int`, *optional*): The memory of the mitigation.
        probe_config_hash (`str`): The hash of the probe.
    """

    auc: float
    delta_auc: float
    untrained_auc: float
    training_loss: float
    forgetting_loss: float | None
    ms_per_step: float | None
    touched: int
    state_bytes: int | None
    probe_config_hash: str


def read_result(folder: Path, step: int) -> Result:
    """
    Read a complete run.

    Args:
        folder (`Path`): The run folder.
        step (`int`): The optimizer step of the comparison.

    Raises:
        [`PlasticityError`]: It does not have exactly one probe at that step, and one before the first step.
    """
    run = read_run(folder)
    untrained, probe = (_probe(run, folder, at) for at in (0, step))
    cycle_steps = run.config["task_steps"] * run.config[PROVENANCE]["tasks_per_cycle"]
    entries = [entry for entry in run.training_log if "loss" in entry and step - cycle_steps < entry["step"] <= step]
    speeds = [entry["tokens_per_second"] for entry in entries if entry.get("tokens_per_second")]
    forgetting = [record for record in run.forgetting if record["step"] == step]
    return Result(
        auc=probe["auc"],
        delta_auc=probe["delta_auc"],
        untrained_auc=untrained["auc"],
        training_loss=_mean_loss(run, entries),
        forgetting_loss=fmean(forgetting[0]["losses"].values()) if forgetting else None,
        ms_per_step=1000 * run.config["global_batch_tokens"] / median(speeds) if speeds else None,
        touched=sum(amount_touched(event) for event in run.mitigations if event["step"] <= step),
        state_bytes=_state_bytes(run),
        probe_config_hash=probe["probe_config_hash"],
    )


def _probe(run: RunRecord, folder: Path, step: int) -> dict[str, Any]:
    probes = [probe for probe in run.probes if probe["step"] == step]
    if len(probes) != 1:
        raise PlasticityError(f"'{folder}' has {len(probes)} probes after step {step} instead of one")
    return probes[0]


def amount_touched(event: dict[str, Any]) -> int:
    """How many units, or entries of tensors, an event of `mitigations.jsonl` reset or changed."""
    return sum(len(one) if isinstance(one, list) else one for one in event["touched"].values())


def _mean_loss(run: RunRecord, entries: list[dict[str, Any]]) -> float:
    """The mean over steps of logged losses, each of which is the mean since the entry before it."""
    steps = [0, *(entry["step"] for entry in run.training_log if "loss" in entry)]
    before = dict(zip(steps[1:], steps))
    lengths = [entry["step"] - before[entry["step"]] for entry in entries]
    return float(np.average([entry["loss"] for entry in entries], weights=lengths))


def _state_bytes(run: RunRecord) -> int | None:
    known = [event["state_bytes"] for event in run.mitigations if "state_bytes" in event]
    return known[-1] if known else None


def divergence(folder: Path) -> str | None:
    """The last line of the log of a run that ended because a loss or weight was not finite, or `None`."""
    path = folder / LOG_FILE
    if not path.exists():
        return None
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = DIVERGENCE.search(lines[-1]) if lines else None
    return found.group(0).removeprefix("error: ") if found else None
