"""
Measure loss of plasticity in language models, inside the Hugging Face ecosystem.

Importing this package imports neither torch nor transformers: a name is looked up when it is first used.
"""

import importlib
from typing import Any


__version__ = "0.1.0"

_HOMES = {
    "analysis.law": ("PAPER_LAW", "OnsetLaw", "fit_onset_law"),
    "analysis.onset": ("Onset", "find_onset"),
    "data.schedule": ("LANGUAGES", "PROBE_LANGUAGE"),
    "data.texts": ("text_blocks",),
    "data.tokenizers": ("byte_tokenizer",),
    "diagnostics": ("Diagnosis", "DiagnosticsCallback", "DiagnosticsConfig", "diagnose"),
    "errors": ("PlasticityError",),
    "hub": ("load_probe_checkpoint", "load_run"),
    "mitigations": ("Mitigation", "MitigationCallback"),
    "models": ("MODEL_SIZES", "ModelSize", "gpt2_config", "peak_learning_rate"),
    "network": ("num_non_embedding_parameters",),
    "probing": ("PlasticityProbeCallback", "ProbeConfig", "ProbeResult", "run_probe"),
    "records": ("RunRecord",),
    "trainer": ("ContinualConfig", "ContinualTrainer"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
