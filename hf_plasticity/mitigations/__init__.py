"""
Mitigations: methods that reduce the loss of plasticity.

Each is one file with one class and one line in `MITIGATIONS` (methods.py). They support models of Transformers with a
plain or a gated MLP and with grouped-query attention, in a training loop ([`Mitigation`]) and in any Trainer
([`MitigationCallback`]).
"""

from .active_forgetting import ActiveForgetting
from .base import Mitigation
from .callback import MitigationCallback
from .cbp import CBP
from .fire import Fire
from .full_reset import FullReset
from .grama import Grama
from .head_reset import HeadReset
from .l2_init import L2Init
from .methods import MITIGATIONS, make_mitigation, make_mitigations
from .random_reset import RandomReset
from .redo import Redo
from .shrink_perturb import ShrinkPerturb
from .snr import SNR
from .spectral import Spectral
from .swr import SWR
from .weight_clip import WeightClip
from .weight_decay import WeightDecay


__all__ = [
    "CBP",
    "MITIGATIONS",
    "SNR",
    "SWR",
    "ActiveForgetting",
    "Fire",
    "FullReset",
    "Grama",
    "HeadReset",
    "L2Init",
    "Mitigation",
    "MitigationCallback",
    "RandomReset",
    "Redo",
    "ShrinkPerturb",
    "Spectral",
    "WeightClip",
    "WeightDecay",
    "make_mitigation",
    "make_mitigations",
]
