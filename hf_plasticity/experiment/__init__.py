"""One run from its settings: its configuration, its text, its folder, and the run itself."""

from .config import ExperimentConfig, ModelConfig, parse_experiment
from .run import run_experiment


__all__ = ["ExperimentConfig", "ModelConfig", "parse_experiment", "run_experiment"]
