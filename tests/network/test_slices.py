"""Editing some entries of a parameter, whole or sharded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_plasticity.network import Slices, shard_of


TESTS = Path(__file__).parents[1]


def numbered():
    return Slices("m.weight", torch.nn.Parameter(torch.arange(12.0).view(3, 4)), 1, torch.tensor([3, 0]))


def test_slices_are_read_zeroed_and_written_in_the_order_of_their_index():
    slices = numbered()
    assert slices.read().tolist() == [[3, 0], [7, 4], [11, 8]]
    slices.write_(torch.tensor([[-1, -2], [-3, -4], [-5, -6]]))
    assert slices.parameter.tolist() == [[-2, 1, 2, -1], [-4, 5, 6, -3], [-6, 9, 10, -5]]
    slices.zero_()
    assert slices.parameter.tolist() == [[0, 1, 2, 0], [0, 5, 6, 0], [0, 9, 10, 0]]


def test_what_was_read_is_a_copy():
    slices = numbered()
    values = slices.read()
    slices.zero_()
    assert values.tolist() == [[3, 0], [7, 4], [11, 8]]


def test_shapes_that_do_not_belong_together_are_errors():
    slices = numbered()
    with pytest.raises(ValueError, match=r"m\.weight: values of shape \(2, 3\) for slices of shape \(3, 2\)"):
        slices.write_(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"m\.weight: shape \(4, 3\) instead of the parameter's \(3, 4\)"):
        slices.zero_(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="cannot be sharded like"):
        shard_of(torch.zeros(3), slices.parameter)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_edits_of_sharded_models_equal_edits_of_whole_ones(processes):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    finished = subprocess.run(
        [*command, str(TESTS / "support" / "edited_fsdp.py")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
