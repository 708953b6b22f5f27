"""The result of a probe, and its line in `probes.jsonl`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..metrics.bits_per_byte.definition import bits_per_byte
from ..metrics.delta_auc.definition import delta_auc
from ..metrics.probe_auc.definition import probe_auc


@dataclass
class ProbeResult:
    """
    The validation losses of a probe.

    Args:
        probe_steps (`list[int]`): Probe steps after which the loss was measured, from 0.
        curves (`list[list[float]]`): For each repeat the validation loss at those steps, in nats per token.
        seconds (`float`): Wall-clock time of the probe.
        bytes_per_token (`float`, *optional*): Bytes per token of the validation text; without it `bits_per_byte` is
        `None`.
    """

    probe_steps: list[int]
    curves: list[list[float]]
    seconds: float
    bytes_per_token: float | None = None

    @cached_property
    def losses(self) -> list[float]:
        """The mean curve over the repeats."""
        return np.mean(self.curves, axis=0).tolist()

    @cached_property
    def scores(self) -> dict[str, Any]:
        """`probe_auc`, `mean_loss`, `start_loss` and `final_loss` of the mean curve, by the metric `probe_auc`."""
        return probe_auc(self.probe_steps, self.losses)

    @property
    def auc(self) -> float:
        """Area under the validation-loss curve over probe steps: lower is faster adaptation."""
        return self.scores["probe_auc"]

    @property
    def auc_stderr(self) -> float | None:
        """Standard error of `auc` over the repeats; `None` for a single one."""
        if len(self.curves) < 2:
            return None
        areas = np.asarray(probe_auc(self.probe_steps, self.curves)["probe_auc"])
        return float(np.std(areas, ddof=1) / np.sqrt(len(areas)))

    @property
    def bits_per_byte(self) -> float | None:
        """The final loss in bits per UTF-8 byte, by the metric of that name."""
        if self.bytes_per_token is None:
            return None
        bits = bits_per_byte(self.losses[-1], num_tokens=1, num_bytes=self.bytes_per_token)
        assert isinstance(bits, float)
        return bits

    def record(
        self, position: dict[str, Any], identity: dict[str, Any], reference_auc: float | None
    ) -> dict[str, Any]:
        """
        The probe's line in `probes.jsonl`.

        Args:
            position (`dict`): `cycle`, `task`, `step` and `tokens` of the run at the probe, `None` if they do not
                apply to the training.
            identity (`dict`): `language`, `adaptation`, `seed` and `probe_config_hash`.
            reference_auc (`float`, *optional*): The reference of `delta_auc`, which is the AUC of the first probe of a
                trained model. Without it, `delta_auc` is `None`.
        """
        delta = None
        if reference_auc is not None:
            delta = delta_auc(self.auc, reference_auc)
        record = {
            **{name: position[name] for name in ("cycle", "task", "step", "tokens")},
            "language": identity["language"],
            "adaptation": identity["adaptation"],
            "probe_steps": self.probe_steps,
            "losses": self.losses,
            "auc": self.auc,
            **{name: self.scores[name] for name in ("mean_loss", "start_loss", "final_loss")},
            "bits_per_byte": self.bits_per_byte,
            "delta_auc": delta,
            "seed": identity["seed"],
            "probe_config_hash": identity["probe_config_hash"],
            "seconds": round(self.seconds, 3),
        }
        if len(self.curves) > 1:
            record |= {"repeats": self.curves, "auc_stderr": self.auc_stderr}
        return record
