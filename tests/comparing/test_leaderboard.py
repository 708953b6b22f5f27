"""The numbers of the leaderboard, compared with manual computations."""

import math

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.analysis.paired import mean_interval
from hf_plasticity.comparing.leaderboard import Entry, Scored, make_leaderboard
from hf_plasticity.comparing.page import result as leaderboard_result
from hf_plasticity.comparing.results import Result
from hf_plasticity.comparing.trials import Trial


SEEDS = range(1, 9)
# The effect of a seed on every method.
LUCK = [0.0, 30.0, -20.0, 10.0, -5.0, 25.0, -15.0, 5.0]


def result(auc, training_loss=2.0, forgetting_loss=None, touched=0, probe="h", untrained=80.0):
    return Result(auc, 1.0, untrained, training_loss, forgetting_loss, 10.0, touched, 100, probe)


def entry(method, factor, defaults=1.0, control_of=None, diverged=(), training_loss=2.0, probe="h"):
    aucs = {seed: (100 + luck) * factor for seed, luck in zip(SEEDS, LUCK)}
    results = {
        seed: None if seed in diverged else result(auc, training_loss + seed / 100, probe=probe)
        for seed, auc in aucs.items()
    }
    plain = {seed: result((100 + luck) * defaults) for seed, luck in zip(SEEDS, LUCK)}
    trial = Trial(method, 1, 1e-3, 0.1)
    return Entry(method, control_of, trial, results, plain, [Scored(trial, {9: 100.0})])


def test_the_main_result_is_the_ratio_paired_by_seed():
    board = make_leaderboard([entry("none", 1.0), entry("redo", 0.9, defaults=0.95), entry("cbp", 1.2)])
    assert [row.method for row in board.rows] == ["redo", "none", "cbp"]
    redo, none, cbp = board.rows
    # The effect of a seed cancels, so the intervals have no width.
    assert redo.change == pytest.approx((-10, -10, -10)) and cbp.change == pytest.approx((20, 20, 20))
    assert redo.with_defaults == pytest.approx((-5, -5, -5))
    assert none.change is None and none.p is None
    # 8 seeds of one sign: 2/256; two methods, three pairs.
    assert redo.p == 2 / 256 and redo.corrected_p == cbp.corrected_p == 4 / 256
    assert [row.rank for row in board.rows] == [(1, 1), (2, 2), (3, 3)]
    pairs = {(pair.better, pair.worse): pair for pair in board.pairs}
    assert pairs.keys() == {("redo", "none"), ("redo", "cbp"), ("none", "cbp")}
    assert pairs["redo", "cbp"].change.percent == pytest.approx(-25) and pairs["redo", "cbp"].corrected_p == 6 / 256
    assert board.supported() == [redo, cbp] and board.smallest_p == 4 / 256


def test_the_untrained_model_with_the_same_seed_is_a_second_reference():
    untrained = {1: 80.0, 2: 125.0}
    plain = {seed: result(1.25 * auc, untrained=auc) for seed, auc in untrained.items()}
    better = {seed: result(0.9 * auc, untrained=auc) for seed, auc in untrained.items()}
    trial = Trial("none", 0, 1e-3, 0.1)
    board = make_leaderboard(
        [Entry("redo", None, trial, better, better, []), Entry("none", None, trial, plain, plain, [])]
    )
    assert [row.against_untrained.percent for row in board.rows] == pytest.approx([-10, 25])
    assert "Without mitigation, the AUC is 25.0% above that of the untrained model." in leaderboard_result(board)


def test_a_difference_that_changes_its_sign_is_a_tie():
    other = entry("redo", 1.0)
    noisy = {seed: result(one.auc * (1.01 if seed % 2 else 0.99)) for seed, one in other.results.items()}
    board = make_leaderboard([entry("none", 1.0), Entry("redo", None, other.chosen, noisy, noisy, [])])
    assert [row.rank for row in board.rows] == [(1, 2), (1, 2)] and board.supported() == []


def test_gaps_are_means_of_differences_with_their_intervals():
    one, other = entry("redo", 1.0, training_loss=2.5), entry("none", 1.0)
    row = next(row for row in make_leaderboard([one, other]).rows if row.method == "redo")
    assert row.training_loss_gap == pytest.approx((0.5, 0.5, 0.5))
    assert row.forgetting_gap is None and row.ms_per_step == 10.0 and row.state_bytes == 100
    results = {seed: result(100.0, forgetting_loss=3 + 0.1 * seed) for seed in (1, 2)}
    plain = {seed: result(100.0, forgetting_loss=3) for seed in (1, 2)}
    trial = Trial("redo", 0, 1e-3, 0.1)
    board = make_leaderboard(
        [Entry("redo", None, trial, results, results, []), Entry("none", None, trial, plain, plain, [])]
    )
    row = next(row for row in board.rows if row.method == "redo")
    assert row.forgetting_gap == pytest.approx((0.15, *mean_interval([0.1, 0.2])))


def test_a_method_that_diverged_has_no_rank():
    board = make_leaderboard([entry("none", 1.0), entry("redo", 0.9, diverged=[3]), entry("cbp", 0.9)])
    assert [row.method for row in board.rows] == ["cbp", "none", "redo"]
    redo = board.rows[-1]
    assert (redo.rank, redo.change, redo.diverged) == (None, None, [3])
    assert board.rows[0].corrected_p == 2 / 256  # one test is left


def test_a_baseline_that_diverged_is_an_error():
    with pytest.raises(PlasticityError, match="the baseline diverged with seed 2"):
        make_leaderboard([entry("none", 1.0, diverged=[2]), entry("redo", 0.9)])


def test_aucs_of_different_probes_are_not_compared():
    with pytest.raises(PlasticityError, match=r"have 2 different probes \(g, h\)"):
        make_leaderboard([entry("none", 1.0), entry("redo", 0.9, probe="g")])


def test_a_trial_that_diverged_is_never_chosen():
    trial = Trial("redo", 0, 1e-3, 0.1)
    assert Scored(trial, {1: 100.0, 2: None}).score == math.inf
    assert Scored(trial, {1: 100.0, 2: 400.0}).score == pytest.approx(math.log(200))


def test_the_leaderboard_is_json(tmp_path):
    import json

    board = make_leaderboard([entry("none", 1.0), entry("redo", 0.9)])
    data = json.loads(json.dumps(board.to_dict()))
    assert data["rows"][0]["change"]["percent"] == pytest.approx(-10)
    assert data["smallest_corrected_p"] == 2 / 256 and data["seeds_needed_for_ranks"] == 6
