"""The plan of a comparison: its methods, trials and seeds, and the command of every run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..analysis.paired import MOST_SEEDS
from ..errors import PlasticityError
from ..experiment import ExperimentConfig, parse_experiment
from ..experiment.data import run_schedule
from ..mitigations import MITIGATIONS
from ..records import write_atomically
from ..trainer.config import INLINE
from .trials import BASELINE, Trial, trials_of


PLAN_FILE = "comparison.json"
TUNING, FINAL = "tuning", "final"
# Settings that the comparison decides for each run.
OWN = {
    "seed": "use --seeds and --tune_seeds",
    "mitigation": "use --mitigations",
    "mitigation_args": "the comparison searches them",
    "no_probe": "a comparison requires probes",
}


@dataclass(frozen=True)
class Run:
    """
    One run of a comparison.

    Args:
        folder (`Path`): Its run folder.
        trial ([`Trial`]): Its trial.
        seed (`int`): Its seed.
        settings (`list[str]`): All settings of `hf-plasticity train`.
    """

    folder: Path
    trial: Trial
    seed: int
    settings: list[str]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "hf_plasticity", "train", *self.settings]


@dataclass(frozen=True)
class Comparison:
    """
    A comparison of mitigations.

    Args:
        output_dir (`Path`): The folder of its runs and its leaderboard.
        methods (`Sequence[str]`): Names of mitigations, including `"none"`.
        seeds (`Sequence[int]`): The seeds of the final runs.
        tune_seeds (`Sequence[int]`): The seeds of the trials, all different from `seeds`.
        trials (`int`): The number of trials for each method.
        tune_probe_language (`str`): The held-out language on which trials are scored.
        cycle (`int`, *optional*): The cycle at whose end AUCs are compared; the last one by default.
        settings (`Sequence[str]`): Settings of `hf-plasticity train` that all runs share.

    Raises:
        [`PlasticityError`]: An invalid value, in the comparison or in any of its runs.
    """

    output_dir: Path
    methods: Sequence[str]
    seeds: Sequence[int]
    tune_seeds: Sequence[int]
    trials: int
    tune_probe_language: str
    cycle: int | None
    settings: Sequence[str]

    def __post_init__(self) -> None:
        for word in self.settings:
            name = word.split("=")[0].lstrip("-")
            if word.startswith("--") and name in OWN:
                raise PlasticityError(f"{name}: the comparison decides it for each run; {OWN[name]}")
        for method in self.methods:
            if method not in (BASELINE, *MITIGATIONS):
                known = ", ".join((BASELINE, *MITIGATIONS))
                raise PlasticityError(f"mitigations: '{method}' is unknown; choose from {known}")
        if BASELINE not in self.methods or len(self.methods) < 2:
            raise PlasticityError(
                f"mitigations: '{' '.join(self.methods)}' must have {BASELINE}, the baseline, and at least one method"
            )
        for name in ("methods", "seeds", "tune_seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                shown = "mitigations" if name == "methods" else name
                raise PlasticityError(f"{shown}: '{' '.join(map(str, values))}' has a duplicate")
        if shared := sorted(set(self.seeds) & set(self.tune_seeds)):
            raise PlasticityError(f"tune_seeds: {shared[0]} is also a seed of the final runs; choose other seeds")
        if len(self.seeds) > MOST_SEEDS:
            raise PlasticityError(f"seeds: {len(self.seeds)} are more than {MOST_SEEDS}, the most for an exact test")
        if self.trials < 1:
            raise PlasticityError(f"trials: {self.trials} is not a positive number")
        self._check_base()
        # Check all runs before the first one starts.
        for run in (*self.tuning_runs(), *self.final_runs([self.trials_of(method)[0] for method in self.methods])):
            parse_experiment(run.settings)

    def _check_base(self) -> None:
        training, data = self.base.training, self.base.data
        if training.mitigation is not None:
            raise PlasticityError(f"mitigation: the configuration has {', '.join(training.mitigation)}; remove it")
        if training.no_probe or training.probe != INLINE:
            raise PlasticityError("probe: a comparison requires inline probes; remove no_probe and probe")
        if training.hub_model_id is not None:
            raise PlasticityError(
                f"hub_model_id: all runs would be uploaded to '{training.hub_model_id}'; leave it out, and each run "
                "is uploaded to a repository with the name of its folder"
            )
        held_out = self.tune_probe_language
        if held_out == data.probe_language or held_out in data.languages:
            which = "the reported probe language" if held_out == data.probe_language else "a training language"
            raise PlasticityError(f"tune_probe_language: '{held_out}' is {which}; it must be held out of both")
        if self.cycle is not None and not 1 <= self.cycle <= training.cycles:
            raise PlasticityError(f"cycle: {self.cycle} is not between 1 and the {training.cycles} cycles of a run")
        period, unit = training.probe_period
        if (self.last_cycle * (self.tasks_per_cycle if unit == "tasks" else 1)) % period:
            raise PlasticityError(
                f"cycle: no probe is due after cycle {self.last_cycle}, because the model is probed every {period} "
                f"{unit}; choose another cycle, or change probe_every_{unit}"
            )

    @cached_property
    def base(self) -> ExperimentConfig:
        """The configuration that all runs share."""
        return parse_experiment([*self.settings, f"--output_dir={self.output_dir}"])

    @property
    def last_cycle(self) -> int:
        """The cycle at whose end AUCs are compared."""
        return self.base.training.cycles if self.cycle is None else self.cycle

    @cached_property
    def tasks_per_cycle(self) -> int:
        return run_schedule(self.base, batch_size=1).tasks_per_cycle

    @property
    def last_step(self) -> int:
        """The optimizer step at which AUCs are compared."""
        return self.last_cycle * self.tasks_per_cycle * self.base.training.task_steps

    def tuned_methods(self) -> list[str]:
        """The methods that have trials: all except controls whose method is also compared."""
        return [method for method in self.methods if self.method_of(method) is None]

    def method_of(self, method: str) -> str | None:
        """The compared method for which this one is a control, or `None`."""
        control_of = None if method == BASELINE else MITIGATIONS[method].control_of
        return control_of if control_of in self.methods else None

    def trials_of(self, method: str) -> list[Trial]:
        """The trials of a method."""
        training = self.base.training
        return trials_of(method, self.trials, training.learning_rate, training.weight_decay, training.task_steps)

    def tuning_runs(self) -> list[Run]:
        """The runs that score the trials."""
        # As few probes as possible, and nothing that only a report requires.
        training = self.base.training
        every = f"--probe_every_cycles={self.last_cycle}"
        if training.probe_every_tasks is not None:
            every = f"--probe_every_tasks={self.last_cycle * self.tasks_per_cycle}"
        settings = [
            f"--cycles={self.last_cycle}", every, f"--probe_language={self.tune_probe_language}",
            "--save_probe_checkpoints=False", "--diagnose=False", "--evaluate_forgetting=False",
        ]  # fmt: skip
        trials = [trial for method in self.tuned_methods() for trial in self.trials_of(method)]
        return [self._run(TUNING, trial, seed, settings) for trial in trials for seed in self.tune_seeds]

    def final_runs(self, trials: Sequence[Trial]) -> list[Run]:
        """The final runs of some trials, for the leaderboard."""
        settings = [f"--probe_language={self.base.data.probe_language}"]
        return [self._run(FINAL, trial, seed, settings) for trial in trials for seed in self.seeds]

    def _run(self, stage: str, trial: Trial, seed: int, settings: list[str]) -> Run:
        folder = self.output_dir / stage / f"{trial.name}-seed{seed}"
        # The probe does not change with the training's learning rate and weight decay.
        base = self.base.settings()
        probe = [f"--{name}={base[name]}" for name in ("probe_learning_rate", "probe_weight_decay")]
        own = [*trial.settings(), *probe, *settings, f"--seed={seed}", f"--output_dir={folder}"]
        return Run(folder, trial, seed, [*self.settings, *own])

    def identity(self) -> dict[str, Any]:
        """The settings that affect results, for `comparison.json`."""
        numerics = self.base.numerics()
        return {
            "mitigations": list(self.methods),
            "seeds": list(self.seeds),
            "tune_seeds": list(self.tune_seeds),
            "trials": self.trials,
            "tune_probe_language": self.tune_probe_language,
            "cycle": self.last_cycle,
            "settings": json.loads(json.dumps({name: value for name, value in numerics.items() if name != "seed"})),
        }

    def take_folder(self) -> None:
        """Write the settings of the comparison to its folder, after [`check_folder`]."""
        self.check_folder()
        own = json.dumps(self.identity(), indent=1, ensure_ascii=False)
        write_atomically(self.output_dir / PLAN_FILE, own.encode())

    def check_folder(self) -> None:
        """
        Check that the folder is new, or belongs to this comparison. It may have more mitigations than before.

        Raises:
            [`PlasticityError`]: The folder belongs to another comparison.
        """
        path, own = self.output_dir / PLAN_FILE, self.identity()
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            flat, flat_own = ({**one, **one["settings"]} for one in (known, own))
            names = [name for name in flat_own | flat if name not in ("settings", "mitigations")]
            different = [
                f"{name} is {flat.get(name)} there and {flat_own.get(name)} here"
                for name in names
                if flat.get(name) != flat_own.get(name)
            ]
            if lacking := [name for name in known["mitigations"] if name not in self.methods]:
                different.append(f"mitigations must include {', '.join(lacking)}")
            if different:
                raise PlasticityError(
                    f"output_dir: '{self.output_dir}' belongs to another comparison ({'; '.join(different)}); choose "
                    "another folder"
                )
