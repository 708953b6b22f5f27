"""Figures: axes that do not magnify noise, log-spaced checkpoints, and drawing in several threads."""

import threading
from functools import partial

import matplotlib
import pytest

from hf_plasticity.analysis.figures import is_log_spaced, panel, render, training_axis
from hf_plasticity.analysis.sections.probes import auc_figure, delta_auc_figure
from hf_plasticity.analysis.series import probe_series
from hf_plasticity.records import read_run
from support.reports import make_run, probe


def series_of(folder, areas, **fields):
    [series] = probe_series(read_run(make_run(folder, probes=[probe(c, a, **fields) for c, a in areas.items()])))
    return series


def span(figure):
    low, high = figure.axes[0].get_ylim()
    return high - low


def test_an_axis_spans_ten_times_the_noise(tmp_path):
    # They lie 1 from the line between their neighbors: scatter 1 / √1.5 · 1.4826 = 1.2106, as a part of 100.
    series = series_of(tmp_path / "run", dict(enumerate([100.0, 101.0] * 5, start=1)))
    assert span(auc_figure(series)) == pytest.approx(12.106, abs=1e-3)
    assert span(delta_auc_figure(series)) == pytest.approx(12.106, abs=1e-3)


def test_an_axis_spans_at_least_one_percent_or_five_without_known_noise(tmp_path):
    still = series_of(tmp_path / "still", dict(enumerate([50.0, 50.0002] * 5, start=1)))
    assert span(auc_figure(still)) == pytest.approx(0.5) and span(delta_auc_figure(still)) == pytest.approx(1.0)
    short = series_of(tmp_path / "short", {1: 50.0, 2: 50.1})
    assert span(auc_figure(short)) == pytest.approx(2.5) and span(delta_auc_figure(short)) == pytest.approx(5.0)


def test_the_error_over_repeats_counts_as_noise(tmp_path):
    series = series_of(tmp_path / "run", {1: 50.0, 2: 50.1}, auc_stderr=1.0)
    assert span(auc_figure(series)) == pytest.approx(10.0)


def test_a_change_larger_than_the_noise_fills_the_axis(tmp_path):
    series = series_of(tmp_path / "run", {cycle: 100.0 + 10 * cycle for cycle in range(1, 9)})
    assert 70 < span(auc_figure(series)) < 90


@pytest.mark.parametrize(
    ("places", "logarithmic"),
    [
        (range(1, 49), False),
        (range(0, 10_001, 500), False),
        ([1000, 2000, 5000], False),
        ([0, 1, 2, 4, 8, 16], True),
        # Powers of two, then evenly spaced, as published suites have them.
        ([0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)], True),
    ],
)
def test_log_spaced_checkpoints_have_a_logarithmic_axis(places, logarithmic):
    assert is_log_spaced(places) == logarithmic
    _, axes = panel("a")
    axes.plot(list(places), list(places))
    training_axis(axes, "steps", places)
    assert (axes.get_xscale() == "symlog") == logarithmic
    low, high = axes.get_xlim()
    assert 0 <= low <= min(places) and high >= max(places)


def test_drawing_is_thread_safe_and_does_not_change_matplotlib(tmp_path):
    series = series_of(tmp_path / "run", {1: 60.0, 2: 54.0, 3: 57.0})
    before, [expected], found = dict(matplotlib.rcParams), render(partial(auc_figure, series), "svg"), []
    threads = [
        threading.Thread(target=lambda: found.extend(render(partial(auc_figure, series), "svg"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4 and dict(matplotlib.rcParams) == before
