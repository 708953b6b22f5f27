"""Every mitigation with arguments under which it acts in a run of a few steps, and how its records are compared."""

import pytest


LOSSES = ("loss_before", "loss_after")

CASES = {
    "weight_decay": {"weight_decay": 0.5},
    "l2_init": {"strength": 1.0},
    "shrink_perturb": {},
    "weight_clip": {"kappa": 1.0},
    "full_reset": {},
    "redo": {"threshold": 0.6, "every": 3, "window": 2},
    "random_reset": {"threshold": 0.6, "every": 3, "window": 2},
    "cbp": {"replacement_rate": 0.1, "maturity": 1},
    "swr": {"fraction": 0.05, "every": 3},
    "head_reset": {"collapsed_threshold": 1.0, "sink_threshold": 1.0, "every": 5},
    "grama": {"threshold": 0.6, "every": 3, "window": 2, "grace": 4},
    "fire": {},
    "spectral": {"strength": 1.0},
    "active_forgetting": {"every": 5},
    "snr": {"rejection": 0.5, "max_gap": 2, "patience": 1},
}


def settings_of(name, **arguments):
    """The settings of a run with one mitigation."""
    return {"mitigation": [name], "mitigation_args": CASES[name] | arguments}


def assert_close_events(ones, others):
    """The same events, whose losses differ by rounding."""
    assert [without_losses(one) for one in ones] == [without_losses(other) for other in others]
    for one, other in zip(ones, others):
        for name in LOSSES:
            assert (one.get(name) is None) == (other.get(name) is None)
            if one.get(name) is not None:
                assert one[name] == pytest.approx(other[name], rel=1e-5)


def without_losses(event):
    # What a process holds depends on how many there are.
    return {name: value for name, value in event.items() if name not in (*LOSSES, "state_bytes")}
