"""The settings of a probe."""

import dataclasses
import math
import typing
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import PlasticityError
from ..learning_rate import learning_rate_shape
from ..settings import setting


ADAPTATIONS = ("full", "lora")
POSITIVE = ("steps", "eval_every", "eval_sequences", "batch_size", "learning_rate", "repeats", "lora_rank")
# Settings without a flag: decided by the text settings of the run, or impossible on a command line.
NO_FLAG = ("allow_repeats", "lr_scheduler_kwargs", "lora_target_modules")


@dataclass
class ProbeConfig:
    """
    How a copy of the model is trained on the probe language, and how its validation loss is measured.

    All settings affect the curve and are part of `probe_config_hash`: only probes with equal settings are compared.
    The defaults are a short probe for a quick look at a model that fits one device. The study's values are in
    `configs/paper.yaml`.

    Args:
        steps (`int`, *optional*, defaults to 200):
            Optimizer steps of the probe (the paper: 9,537, which is 5B tokens).
        eval_every (`int`, *optional*, defaults to a twentieth of `steps`):
            Optimizer steps between two evaluations (the paper: 95). The first is before any step, the last after all.
        eval_sequences (`int`, *optional*, defaults to 64):
            Validation sequences in an evaluation, always the same ones (the paper: 1,280).
        dense_start (`bool`, *optional*, defaults to `False`):
            Also evaluate after 1, 2, 4, 8, … steps within the first interval, where the loss falls fastest and the
            trapezoids of a short probe are coarsest. Not in the paper.
        batch_size (`int`, *optional*, defaults to 16):
            Sequences in an optimizer step, over all processes and micro-batches (the paper: 256).
        learning_rate (`float`, *optional*, defaults to 3e-4):
            Peak learning rate.
        warmup_steps (`int`, *optional*, defaults to a tenth of `steps`):
            Steps of linear warmup.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant_with_warmup"`):
            Shape after the warmup, any that Transformers supports. The paper does not state it.
        lr_scheduler_kwargs (`dict`, *optional*):
            Further arguments of that shape.
        weight_decay (`float`, *optional*, defaults to 0.1):
            Weight decay of AdamW, on weight matrices and embeddings, as in the Trainer.
        adam_beta1 (`float`, *optional*, defaults to 0.9):
            β₁ of AdamW.
        adam_beta2 (`float`, *optional*, defaults to 0.95):
            β₂ of AdamW.
        adam_epsilon (`float`, *optional*, defaults to 1e-8):
            ε of AdamW.
        max_grad_norm (`float`, *optional*, defaults to 1.0):
            Gradient norm to clip to, 0 for none.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order of the training sequences, and of dropout if the model has it.
        repeats (`int`, *optional*, defaults to 1):
            Probes at each point, with seeds `seed … seed + repeats − 1`; the record has their mean and spread.
        adaptation (`str`, *optional*, defaults to `"full"`):
            `"full"` trains the same parameters as the training, as in the paper; `"lora"` trains low-rank adapters
            (PEFT) on a frozen model, for models whose second optimizer state does not fit into memory.
        lora_rank (`int`, *optional*, defaults to 16):
            Rank of the adapters.
        lora_alpha (`int`, *optional*, defaults to 32):
            Their scale is `lora_alpha / lora_rank`.
        lora_target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            Modules that get an adapter, as in `peft.LoraConfig`.
        allow_repeats (`bool`, *optional*, defaults to `False`):
            Whether training sequences may be used again when there are fewer than `steps · batch_size`.

    Raises:
        [`PlasticityError`]: A count that is not positive, an unknown adaptation or scheduler.
    """

    steps: int = setting(200, help="Optimizer steps of a probe.")
    eval_every: int | None = setting(None, help="Probe steps between two evaluations.")
    eval_sequences: int = setting(64, help="Validation sequences of an evaluation.")
    dense_start: bool = setting(False, help="Also evaluate after 1, 2, 4, ... probe steps within the first interval.")
    batch_size: int = setting(16, help="Sequences in an optimizer step of the probe.")
    learning_rate: float = setting(3e-4, help="Peak learning rate of the probe.")
    warmup_steps: int | None = setting(None, help="Warmup steps of the probe.")
    lr_scheduler_type: str = setting("constant_with_warmup", help="Shape of the probe's learning rate after warmup.")
    lr_scheduler_kwargs: dict[str, Any] = setting(default_factory=dict, help="Further arguments of that shape.")
    weight_decay: float = setting(0.1, help="Weight decay of the probe.")
    adam_beta1: float = setting(0.9, help="Beta1 of the probe's AdamW.")
    adam_beta2: float = setting(0.95, help="Beta2 of the probe's AdamW.")
    adam_epsilon: float = setting(1e-8, help="Epsilon of the probe's AdamW.")
    max_grad_norm: float = setting(1.0, help="Gradient norm that the probe clips to, 0 for none.")
    seed: int = setting(0, help="Seed of the order of the probe's text, independent of the run's seed.")
    repeats: int = setting(1, help="Probes at each point, for error bars.")
    adaptation: str = setting("full", help="full or lora.")
    lora_rank: int = setting(16, help="Rank of the adapters of a lora probe.")
    lora_alpha: int = setting(32, help="LoRA alpha: the adapters are scaled by alpha / rank.")
    lora_target_modules: str | list[str] = setting("all-linear", help="Modules that get an adapter.")
    allow_repeats: bool = setting(False, help="Whether the probe's text may be used again when it runs out.")

    def __post_init__(self) -> None:
        self._check_types()
        if self.eval_every is None:
            self.eval_every = max(1, self.steps // 20)
        if self.warmup_steps is None:
            self.warmup_steps = self.steps // 10
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise PlasticityError(f"probe_{name}: {getattr(self, name)} is not positive")
        for name in ("weight_decay", "max_grad_norm", "adam_epsilon", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PlasticityError(f"probe_{name}: {getattr(self, name)} is not 0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise PlasticityError(f"probe_{name}: {getattr(self, name)} is not a number from 0 to below 1")
        if self.adaptation not in ADAPTATIONS:
            raise PlasticityError(
                f"probe_adaptation: '{self.adaptation}' is unknown; choose one of {', '.join(ADAPTATIONS)}"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise PlasticityError(
                f"probe_warmup_steps: {self.warmup_steps} is not between 0 and the {self.steps} probe steps"
            )
        try:
            learning_rate_shape(
                self.lr_scheduler_type, self.learning_rate, self.steps, self.warmup_steps, self.lr_scheduler_kwargs
            )
        except PlasticityError as error:
            raise PlasticityError(f"probe_{error}") from None

    def _check_types(self) -> None:
        for name, kind in typing.get_type_hints(ProbeConfig).items():
            kinds, value = typing.get_args(kind) or (kind,), getattr(self, name)
            if value is None and type(None) in kinds:
                continue
            for number, protocol, words in ((int, Integral, "a whole number"), (float, Real, "a number")):
                if number in kinds and (not isinstance(value, protocol) or isinstance(value, bool)):
                    raise PlasticityError(f"probe_{name}: {value!r} is not {words}")
                if number in kinds and not isinstance(value, int | float):  # a number of NumPy
                    setattr(self, name, number(value))

    @classmethod
    def from_settings(cls, settings: Any, **defaults: Any) -> "ProbeConfig":
        """
        Make the probe of a configuration with `probe_…` fields (see [`probe_settings`]).

        Args:
            settings (dataclass instance): The configuration.
            **defaults: Values of its settings that are `None`.
        """
        given = {name: getattr(settings, f"probe_{name}") for name in _flags()}
        return cls(**(defaults | {name: value for name, value in given.items() if value is not None}))

    def as_settings(self) -> dict[str, Any]:
        """The `probe_…` settings of this probe."""
        return {f"probe_{name}": getattr(self, name) for name in _flags()}

    def evaluation_steps(self) -> list[int]:
        """The probe steps after which the validation loss is measured, including 0 and `steps`."""
        steps = {*range(0, self.steps, self.eval_every), self.steps}
        if self.dense_start:
            power = 1
            while power < min(self.eval_every, self.steps):
                steps.add(power)
                power *= 2
        return sorted(steps)

    def protocol(self) -> dict[str, Any]:
        """The settings that affect the numbers of a probe, to be hashed."""
        settings = asdict(self)
        if self.adaptation == "full":
            settings = {name: value for name, value in settings.items() if not name.startswith("lora_")}
        return settings


def _flags() -> list[str]:
    return [one.name for one in dataclasses.fields(ProbeConfig) if one.name not in NO_FLAG]


def probe_settings(**defaults: Any) -> type:
    """
    A dataclass with a field `probe_<name>` for each setting of [`ProbeConfig`], for configurations to inherit from. A
    field without a default here is `None`: the configuration decides it from its other settings.

    Args:
        **defaults: Defaults by the names of [`ProbeConfig`].
    """
    kinds, known = typing.get_type_hints(ProbeConfig), {one.name: one for one in dataclasses.fields(ProbeConfig)}
    decided = {"steps": "those of a task instance", "eval_every": "a hundredth of the probe"}
    fields = []
    for name in _flags():
        kind, text = kinds[name], known[name].metadata["help"]
        if name not in defaults:
            kind, text = kind | None, f"{text.removesuffix('.')}; {decided.get(name, 'as in training')} by default."
        fields.append((f"probe_{name}", kind, setting(defaults.get(name), help=text)))
    return dataclasses.make_dataclass("ProbeSettings", fields)
