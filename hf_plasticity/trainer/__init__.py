from ..errors import TrainingInterrupted
from .checkpoint import last_complete_checkpoint
from .config import ContinualConfig
from .trainer import ContinualTrainer, TrainingDivergedError


__all__ = [
    "ContinualConfig",
    "ContinualTrainer",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "last_complete_checkpoint",
]
