"""The report: one self-contained page that begins with the result and never mixes different probes."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hf_plasticity.analysis.page import Drawing, Page, Section, write_page
from hf_plasticity.analysis.report import find_runs, write_report
from hf_plasticity.analysis.sections.probes import auc_figure, learning_curves
from hf_plasticity.analysis.series import probe_series
from hf_plasticity.analysis.summary import run_result, unit_sentence
from hf_plasticity.cli import main
from hf_plasticity.errors import PlasticityError
from hf_plasticity.records import read_run
from support.reports import (
    AREAS,
    HASH,
    attached,
    figures_of,
    first_screen,
    make_run,
    probe,
    report,
    text_of,
    write_lines,
)


NOISY = [120.0, 100.0, 101.0, 100.0, 101.0, 100.0]


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture
def full_run(tmp_path):
    folder = make_run(tmp_path / "full", parameters=100_096)
    places = [{"cycle": c, "task": 8 * c, "step": 80 * c, "tokens": 10**6 * c} for c in range(4)]
    write_lines(folder / "forgetting.jsonl", *(place | {"losses": {"en": 2.0, "fr": 2.5}} for place in places[1:]))
    measures = {
        "dormant_units": {"overall": 0.1, "per_layer": [0.1, None]},
        "sharpness": {"overall": None, "per_layer": [None, None]},
    }
    diagnosis = {
        "diagnostics_config_hash": "d",
        "measures": measures,
        "not_measured": {"sharpness": "no double backward"},
    }
    write_lines(folder / "diagnostics.jsonl", *(place | diagnosis for place in places))
    return folder


def test_page_is_self_contained(full_run):
    html = report(full_run)
    tags = Tags(html).found
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert {link for link in links if not link.startswith("data:")} == {"https://huggingface.co/papers/2606.24752"}
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert "@import" not in html and "url(" not in html
    assert not any(re.search(r'href="(?!#|data:)', svg) for svg in figures_of(html).values())


def test_page_of_a_run_shows_its_numbers(full_run):
    html = report(full_run)
    text = text_of(html)
    assert "100K model with 100,096 non-embedding parameters, trained on 2 languages in rotation. " in text
    assert "Probed 4 times on Vietnamese, last after cycle 3 (3M tokens)." in text
    # 57 is 36.7% below 90 and 5% below 60.
    assert (
        "After cycle 3, the AUC on Vietnamese is 36.7% below that of the untrained model and 5.0% below that after "
        "cycle 1 (" in first_screen(html)
    )
    assert "the AUC was lowest after cycle 2 (54.00)." in first_screen(html)
    assert "cycle 0 0 0 90.00 – 6.000 4.000 1.250 40.00" in text
    assert "cycle 1 80 1M 60.00 +0.00% 6.000 2.000 1.250 20.00" in text
    assert "cycle 2 160 2M 54.00 −10.00% 6.000 1.600 1.250 16.00" in text
    curves = ["learning curves", "late learning curves"]
    assert [*figures_of(html)] == ["AUC", "ΔAUC", *curves, "training loss", "forgetting", "dormant units"]
    assert "Not measured: sharpness (no double backward)" in text
    assert "weight_decay 0.1" in text and "torch 2.13.0" in text and "hf_secret" not in html


def test_first_figures_are_auc_and_then_delta_auc(full_run):
    assert [*figures_of(report(full_run))][:2] == ["AUC", "ΔAUC"]


@pytest.mark.parametrize(
    ("areas", "words"),
    [
        ({0: 90.0}, "No result yet: 0 probes of the trained model"),
        ({1: 60.0}, "No result yet: 1 probe of the trained model"),
        ({1: 60.0, 2: 54.0, 3: 57.0}, "No onset of plasticity loss can be stated: 3 probes of 1 seed are too few"),
        (dict(enumerate([*NOISY, 101.0, 100.0, 101.0])), "No onset of plasticity loss was detected up to task 64 (a "
         "steady rise of"),
        (dict(enumerate([*NOISY, 150.0])), "the AUC on Vietnamese is 25.0% above that of the untrained model and "
         "50.0% above that after cycle 1 (with fewer than 8 probes, the noise is not known)."),
        ({0: 50.0, 1: 60.0, 2: 54.0, 3: 60.0}, "is 20.0% above that of the untrained model and equal to that after"),
        # Between neighbors the differences are 1, the robust standard deviation of AUCs is 1.4826 / sqrt(1.5), and the
        # error of a difference sqrt(2) times that: 1.71, and 1.43 relative to 120.
        (dict(enumerate([*NOISY, 100.0, 101.0, 100.0])), "learns Vietnamese 16.7 ± 1.4% faster than the untrained "
         "model and not significantly faster or more slowly than after cycle 1 (AUC +0.0 ± 1.7%)."),
        (dict(enumerate([*NOISY, 100.0, 101.0, 150.0])), "50.0 ± 1.7% more slowly than after cycle 1."),
        ({0: 50.0, 1: 60.0, 2: 54.0, 3: 53.0}, "the AUC was lowest at the last probe (53.00)."),
    ],
)  # fmt: skip
def test_first_screen_has_the_result_or_its_absence(tmp_path, areas, words):
    assert words in first_screen(report(make_run(tmp_path / "run", areas)))


def test_the_model_before_your_own_training_is_not_called_untrained(tmp_path):
    html = report(make_run(tmp_path / "run", dict(enumerate([*NOISY, 100.0, 101.0, 150.0])), bare=True))
    assert "more slowly than the model before training and" in first_screen(html)
    assert "untrained" not in text_of(html)


def test_noise_alone_rarely_makes_a_difference_in_words(tmp_path):
    folder, rng, claims = make_run(tmp_path / "run", {0: 1.0}), np.random.default_rng(0), 0
    record = read_run(folder)
    [probe] = record.probes
    for _ in range(200):
        aucs = (100 + 2 * rng.standard_normal(17)).tolist()
        probes = [probe | {"cycle": k, "task": 8 * k, "step": 80 * k, "auc": auc} for k, auc in enumerate(aucs)]
        [result] = run_result(probe_series(dataclasses.replace(record, probes=probes)))
        claims += result.count(" than the untrained model") + result.count(" than after cycle 1")
        claims -= result.count("not significantly")
    assert 4 <= claims <= 60, "of 400 comparisons, about 7% are outside of two standard errors"


def test_dormant_units_are_compared_only_between_equal_diagnoses(full_run):
    record = read_run(full_run)
    assert unit_sentence(record) == "Dormant MLP units: 10% after cycle 0, 10% after cycle 3."
    record.diagnostics[-1]["diagnostics_config_hash"] = "other"
    assert unit_sentence(record) == ""


def test_a_clear_rise_has_an_onset_on_the_first_screen_and_in_the_figures(tmp_path):
    html = report(make_run(tmp_path / "run", {cycle: 60.0 + abs(cycle - 5) for cycle in range(1, 15)}))
    assert "Onset of plasticity loss: task 40" in first_screen(html)
    figures = figures_of(html)
    assert "onset: task 40" in figures["AUC"] and "onset: task 40" in figures["ΔAUC"]


def test_run_without_probes_is_reported(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "probes.jsonl").unlink()
    assert first_screen(report(folder)) == "No result yet: no probe has been recorded."


def test_tables_are_attached_as_csv_with_full_precision(tmp_path):
    repeats = [probe(2, area)["losses"] for area in (54.0, 55.0)]
    probes = [probe(1, 60.0), probe(2, 54.5, repeats=repeats, auc_stderr=0.5, tokens=1_234_567)]
    tables = [
        list(csv.reader(table.splitlines()))
        for table in attached(report(make_run(tmp_path / "a", probes=probes)), "text/csv")
    ]
    assert tables[0][0] == [
        "Probe", "Step", "Tokens", "AUC", "AUC error", "ΔAUC against cycle 1", "ΔAUC against cycle 1 error",
        "Start loss", "Final loss", "Bits per byte", "AUC from step 10",
    ]  # fmt: skip
    assert tables[0][2][:6] == ["cycle 2", "160", "1234567", "54.5", "0.5", str(100 * (54.5 - 60) / 60)]
    assert ["weight_decay", "0.1"] in tables[1]
    # Losses (6, x, x) at steps 0, 10, 20 and the area 30 + 15 x: 10 x from step 10 on.
    assert [float(row[-1]) for row in tables[0][1:]] == pytest.approx([20.0, 10 * (54.5 - 30) / 15])


def test_the_auc_without_the_descent_requires_two_losses_after_it(tmp_path):
    ends = {"probe_steps": [0, 20], "losses": [6.0, 2.0], "auc": 80.0}
    text = text_of(report(make_run(tmp_path / "run", probes=[probe(cycle, 80.0) | ends for cycle in (1, 2)])))
    assert "Final loss" in text and "AUC from step" not in text


def test_aucs_in_tables_have_their_errors(tmp_path):
    repeats = [probe(2, area)["losses"] for area in (54.0, 55.0)]
    probes = [probe(1, 60.0), probe(2, 54.5, repeats=repeats, auc_stderr=0.5)]
    assert "cycle 2 160 2M 54.50 ± 0.50" in text_of(report(make_run(tmp_path / "run", probes=probes)))


def test_delta_auc_of_repeats_is_paired(tmp_path):
    # Repeats of areas 60 and 90 after cycle 1; 54 and 85.5 after cycle 2: −10% and −5%, standard error 2.5.
    repeats = {1: (60.0, 90.0), 2: (54.0, 85.5)}
    probes = [
        probe(cycle, sum(areas) / 2, repeats=[probe(cycle, area)["losses"] for area in areas], auc_stderr=15.0)
        for cycle, areas in repeats.items()
    ]
    series = probe_series(read_run(make_run(tmp_path / "run", probes=probes)))[0]
    assert series.change_errors == pytest.approx([0.0, 2.5])
    assert "Error bars are one standard error over these repeats" in text_of(report(tmp_path / "run"))


def test_probes_of_different_configurations_are_never_one_series(tmp_path):
    other = [probe(cycle, 10 * area, "ffffffffffff", step=80 * cycle) for cycle, area in AREAS.items()]
    folder = make_run(tmp_path / "run", probes=[*(probe(c, a) for c, a in AREAS.items()), *other])
    found = probe_series(read_run(folder))
    assert [one.probe_config_hash for one in found] == [HASH, "ffffffffffff"]
    # Each on its own reference: with a mixed one, changes of +900% would appear.
    assert [one.changes for one in found] == [pytest.approx([0.0, -10.0, -5.0])] * 2
    for one in found:
        drawn = [line for line in auc_figure(one).axes[0].lines if len(line.get_xdata()) > 2]
        assert [list(line.get_ydata()) for line in drawn] == [[probe["auc"] for probe in one.trained]]
    text = text_of(report(folder))
    assert "+900" not in text and f"configuration {HASH}" in text and "configuration ffffffffffff" in text


def test_a_probe_within_the_first_cycle_is_one_of_a_trained_model(tmp_path):
    probes = [probe(0, 90.0), probe(0, 70.0, task=4, step=40, tokens=500_000), probe(1, 60.0)]
    folder = make_run(tmp_path / "run", probes=probes, provenance={"tasks_per_cycle": 8})
    [series] = probe_series(read_run(folder))
    assert [series.label(one) for one in series.trained] == ["task 4", "cycle 1"]
    assert series.untrained["auc"] == 90.0 and series.reference["auc"] == 70.0
    assert "ΔAUC against task 4" in text_of(report(folder))


def test_run_without_configuration_cycles_or_log_is_reported_with_notes(tmp_path):
    text = text_of(report(make_run(tmp_path / "bare", bare=True, log=False)))
    assert "Model. Probed 4 times on vi, last after step 240." in text
    assert "step 160 160 – 54.00 −10.00% 6.000 1.600 – 16.00" in text
    for note in (
        "No config.yaml",
        "The tokens of some probes are not recorded: the horizontal axis is the optimizer step",
        "ΔAUC is against step 80, the first probe of the trained model",
        "No onset of plasticity loss can be stated: the task instance or the tokens of its probes are not recorded",
        "Bits per byte of some probes",
        "No training log",
        "No forgetting.jsonl",
        "No diagnostics.jsonl",
    ):
        assert note in text
    assert "nan" not in text.lower().split() and "None" not in text.split()


def test_settings_of_a_probe_are_shown_if_they_are_recorded(tmp_path):
    folder = make_run(tmp_path / "bare", bare=True)
    (folder / "probe_protocols.json").write_text(json.dumps({HASH: {"steps": 20, "precision": "bf16"}}))
    text = text_of(report(folder))
    assert f"Settings of probe {HASH}" in text and "precision bf16" in text


@pytest.mark.parametrize("cycles", [[0], [1], [0, 1], [1, 2]])
def test_first_probes_of_a_run_are_enough_for_a_page(tmp_path, cycles):
    text = text_of(report(make_run(tmp_path / "run", {cycle: AREAS[cycle] for cycle in cycles})))
    assert all(f"cycle {cycle} " in text for cycle in cycles)


def test_several_probes_in_one_task_have_no_onset(tmp_path):
    probes = [probe(1, 60.0), probe(1, 54.0, step=100, tokens=1_250_000), probe(2, 57.0)]
    html = report(make_run(tmp_path / "run", probes=probes))
    assert "No onset of plasticity loss can be stated: several of its probes are in one task instance" in text_of(html)


def test_synthetic_languages_are_not_called_by_natural_names(tmp_path):
    html = report(make_run(tmp_path / "run", source="synthetic"))
    everything = text_of(html) + "".join(figures_of(html).values())
    assert "synthetic languages" in everything and "Vietnamese" not in everything and "English" not in everything


def test_markup_in_names_stays_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>&\"'$\\frac{$"
    folder = make_run(tmp_path / evil, languages=[evil], size=evil, schedule=evil, parameters=1000)
    lines = [{"step": 10 * n, "loss": 3.0 - n, "task": 1, "language": evil, "tokens": n} for n in range(3)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    diagnosis = {"measures": {evil: {"overall": 0.5, "per_layer": [0.5]}}, "not_measured": {evil: evil}}
    write_lines(folder / "diagnostics.jsonl", {"step": 0, "tokens": 0, "diagnostics_config_hash": evil} | diagnosis)
    other = make_run(tmp_path / "other", size=evil + "2", parameters=2000)
    for folders in ([folder], [folder, other]):
        html = report(*folders, figures=tmp_path / "figures")
        assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
        assert not any("onerror" in attributes for _, attributes in Tags(html).found)
        assert not any("<img" in svg for svg in figures_of(html).values())
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png)", path.name) for path in (tmp_path / "figures").iterdir())


def test_figures_are_written_as_svg_and_png(full_run, tmp_path):
    report(full_run, figures=tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = ["auc", "delta-auc", "learning-curves", "late-learning-curves", "training-loss", "forgetting"]
    drawn.append("dormant-units")
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert (tmp_path / "figures" / "auc.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "auc.svg").read_text().startswith("<?xml")


def test_figures_of_one_name_do_not_overwrite_each_other(full_run, tmp_path):
    [series] = probe_series(read_run(full_run))
    drawings = [Drawing("AUC", lambda: auc_figure(series))] * 3
    write_page(Page("a", [], "b", [Section("c", drawings=drawings)]), tmp_path / "a.html", tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {"auc.png", "auc-2.png", "auc-3.png"}


def test_same_records_give_the_same_page(full_run):
    assert report(full_run) == report(full_run)


def test_late_learning_curves_leave_out_the_steep_start(tmp_path):
    steps, losses = [0, 10, 20, 50, 100], [9.0, 5.0, 3.0, 2.5, 2.0]
    [series] = probe_series(
        read_run(make_run(tmp_path / "run", probes=[probe(1, 330.0, probe_steps=steps, losses=losses)]))
    )
    [line] = learning_curves(series, 20).axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([20, 50, 100], [3.0, 2.5, 2.0])
    assert "The same from step 20 on." in text_of(report(tmp_path / "run"))


def test_a_folder_of_runs_is_expanded_to_its_runs(tmp_path):
    ladder = [make_run(tmp_path / "ladder" / name) for name in ("b", "a")]
    (tmp_path / "ladder" / "notes").mkdir()
    single = make_run(tmp_path / "single")
    make_run(single / "inside")
    assert find_runs([tmp_path / "ladder"]) == sorted(ladder)
    assert find_runs([single, "org/name", str(tmp_path / "ladder")]) == [single, "org/name", *sorted(ladder)]
    # Folders without a run are refused by the reader of records.
    assert find_runs([tmp_path / "ladder" / "notes", tmp_path / "none"]) == [
        tmp_path / "ladder" / "notes",
        tmp_path / "none",
    ]


def test_command_writes_into_the_run_folder_by_default(full_run, capsys):
    assert main(["report", str(full_run)]) == 0
    assert capsys.readouterr().out.strip() == str(full_run / "report.html")
    assert "<!DOCTYPE html>" in (full_run / "report.html").read_text()


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    run, copy, empty = make_run(tmp_path / "run"), make_run(tmp_path / "copy"), tmp_path / "empty"
    empty.mkdir()
    broken = make_run(tmp_path / "broken", probes=[{"step": 80, "losses": [1.0]}])
    page = str(tmp_path / "page.html")
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(empty)], "is not a run folder"),
        ([str(run), str(run), "-o", page], "is named twice"),
        ([str(run), str(copy), "-o", page], "have the same settings and the same seed (0)"),
        ([str(broken), "-o", page], "the probe of step 80: it lacks language, adaptation"),
        ([str(run), "-o", page, "--onset-rule", "guess"], "'guess' is unknown"),
        ([str(run), "-o", str(run / "config.yaml" / "page.html")], "cannot be written"),
        ([str(run), "-o", page, "--figures", str(run / "config.yaml")], "figures: "),
    ):
        try:
            status = main(["report", *arguments])
        except SystemExit as end:
            status = end.code
        assert status == 2
        out, err = capsys.readouterr()
        assert out == "" and err.strip().count("\n") == 0 and ": error: " in err and words in err, err
    assert not Path(page).exists()


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(PlasticityError, match="runs: there is none"):
        write_report([], tmp_path / "page.html")


# SciPy looks for torch among the loaded modules, so that an entry of `None` there would not do.
BLOCKED = """
import sys

class Blocked:
    def find_spec(name, path, target=None):
        if name.split(".")[0] in ("torch", "transformers", "evaluate", "datasets"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked)
"""


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def test_report_works_without_torch(full_run, tmp_path):
    other = make_run(tmp_path / "other", size="400K")
    code = BLOCKED + "from hf_plasticity.cli import main; sys.exit(main(['report', *sys.argv[1:]]))"
    python(code, str(full_run), "-o", str(tmp_path / "one.html"))
    python(code, str(full_run), str(other), "-o", str(tmp_path / "two.html"))
    assert "2 runs" in (tmp_path / "two.html").read_text()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from hf_plasticity.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    assert python(code).splitlines()[-1] == "[]"
