"""The report: one self-contained page with the right numbers, that mixes nothing and hides nothing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_plasticity.analysis.ladder import comparable, grouped
from hf_plasticity.analysis.plots import auc_figure, learning_curves
from hf_plasticity.analysis.report import write_report
from hf_plasticity.analysis.series import probe_series
from hf_plasticity.analysis.theme import compact, plain
from hf_plasticity.cli import main
from hf_plasticity.errors import PlasticityError
from hf_plasticity.records import read_run
from support.reports import AREAS, HASH, make_run, probe, report, text_of, write_lines


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
        "dormant_fraction": {"overall": 0.1, "per_layer": [0.1, None]},
        "sharpness": {"overall": None, "per_layer": [None, None]},
    }
    diagnosis = {
        "diagnostics_config_hash": "d",
        "measures": measures,
        "not_measured": {"sharpness": "no double backward"},
    }
    write_lines(folder / "diagnostics.jsonl", *(place | diagnosis for place in places))
    return folder


def test_page_needs_nothing_but_itself(full_run):
    html = report(full_run)
    tags = Tags(html).found
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert {link for link in links if not link.startswith("#")} == {"https://huggingface.co/papers/2606.24752"}
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_inline_figures_share_no_ids_and_refer_to_their_own(full_run):
    html = report(full_run)
    ids = re.findall(r'\bid="([^"]*)"', html)
    references = set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'href="#([^"]*)"', html))
    assert references and len(ids) == len(set(ids)) and references <= set(ids)


def test_figures_take_every_color_from_the_theme(full_run):
    html = report(full_run)
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert drawings and not any(re.search(r"#[0-9a-f]{6}", drawing) for drawing in drawings)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", "".join(drawings)))
    light, dark = re.findall(r":root \{ (--.*?) \}", html)
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)


def test_page_of_a_run_shows_its_numbers(full_run):
    text = text_of(report(full_run))
    assert "A 100K model (100,096 non-embedding parameters), trained for 3 cycles (3M tokens) on 2 languages" in text
    # 57 is 5.6% above 54 and 5% below 60.
    assert (
        "Vietnamese fastest after cycle 2; after cycle 3, its AUC was 5.6% above that lowest point and 5.0% below"
        in text
    )
    assert "Lowest AUC 54.00 after cycle 2" in text
    assert "ΔAUC at the end −5.0% against cycle 1" in text
    assert "Onset task 16" in text
    assert "cycle 0 0 6.000 4.000 90.00 – 1.250" in text
    assert "cycle 1 1M 6.000 2.000 60.00 reference 1.250" in text
    assert "cycle 2 2M 6.000 1.600 54.00 −10.00% 1.250" in text
    for title in (
        "Probe loss (nats/token)",
        "AUC (nats·steps",
        "Training loss",
        "Validation loss",
        "dormant fraction",
    ):
        assert title in text
    assert "Not measured: sharpness (no double backward)" in text
    assert "weight_decay 0.1" in text and "torch 2.13.0" in text and "hf_secret" not in text


def test_run_that_has_not_turned_is_censored(tmp_path):
    text = text_of(report(make_run(tmp_path / "run", {0: 90.0, 1: 60.0, 2: 54.0})))
    assert "Onset not yet not turned by cycle 2 (censored)" in text


def test_delta_auc_of_repeats_is_paired(tmp_path):
    # Repeats of areas 60 and 90 after cycle 1; 54 and 85.5 after cycle 2: −10% and −5%, standard error 2.5.
    repeats = {1: (60.0, 90.0), 2: (54.0, 85.5)}
    probes = [
        probe(cycle, sum(areas) / 2, repeats=[probe(cycle, area)["losses"] for area in areas], auc_stderr=15.0)
        for cycle, areas in repeats.items()
    ]
    series = probe_series(read_run(make_run(tmp_path / "run", probes=probes)), "turning_point")[0]
    assert series.change_errors == pytest.approx([0.0, 2.5])
    assert "one standard error over repeated probes" in report(tmp_path / "run")


def test_probes_of_different_configurations_are_never_one_series(tmp_path):
    other = [probe(cycle, 10 * area, "ffffffffffff", step=80 * cycle) for cycle, area in AREAS.items()]
    folder = make_run(tmp_path / "run", probes=[*(probe(c, a) for c, a in AREAS.items()), *other])
    found = probe_series(read_run(folder), "turning_point")
    assert [one.probe_config_hash for one in found] == [HASH, "ffffffffffff"]
    # Each on its own reference: with a mixed one, changes of +900% would appear.
    assert [one.changes for one in found] == [pytest.approx([0.0, -10.0, -5.0])] * 2
    for one in found:
        drawn = [line for axes in auc_figure(one, 480).axes for line in axes.lines if len(line.get_xdata()) > 2]
        assert [list(line.get_ydata()) for line in drawn] == [[probe["auc"] for probe in one.trained]]
    text = text_of(report(folder))
    assert "+900" not in text and f"configuration {HASH}" in text and "configuration ffffffffffff" in text


def test_same_size_under_two_probe_configurations_gets_two_lines_and_no_law(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", probes=[probe(c, 2 * a, "ffffffffffff") for c, a in AREAS.items()])
    three = make_run(tmp_path / "three", size="400K")
    [members] = comparable([read_run(folder) for folder in (one, two, three)], "turning_point").values()
    assert [group.name for group in grouped(members)] == [f"100K · probe {HASH}", "100K · probe ffffffffffff", "400K"]
    text = text_of(report(one, two, three))
    assert "No law was fitted to the onsets, since a size occurs in several configurations" in text
    assert "The fitted law" not in text


def test_probes_on_different_languages_are_compared_apart(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", probes=[probe(c, a, language="th") for c, a in AREAS.items()])
    text = text_of(report(one, two))
    assert "Plasticity by size: Vietnamese, full" in text and "Plasticity by size: th, full" in text


def test_seeds_are_pooled_and_other_settings_are_not(tmp_path):
    folders = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", {0: 90.0, 1: 60.0, 2: 48.0, 3: 57.0}, seed=1),
        make_run(tmp_path / "c", weight_decay=0.5),
    ]
    [members] = comparable([read_run(folder) for folder in folders], "turning_point").values()
    first, second = grouped(members)
    assert (first.name, len(first.seeds)) == ("100K · weight_decay 0.1", 2)
    assert (second.name, len(second.seeds)) == ("100K · weight_decay 0.5", 1)
    # ΔAUC −10% and −20% after cycle 2.
    places, means, lows, highs = first.mean("tokens")
    assert places == [1e6, 2e6, 3e6]
    assert (means[1], lows[1], highs[1]) == pytest.approx((-15.0, -20.0, -10.0))


def test_several_runs_show_the_law_of_their_onsets(tmp_path):
    # The lowest area at task 16, 32 and 64 for 1M, 2M and 4M parameters: T = 1.6e-5 · P.
    folders = []
    for parameters, lowest in ((1_000_000, 2), (2_000_000, 4), (4_000_000, 8)):
        areas = {cycle: 60.0 + abs(cycle - lowest) for cycle in range(1, 11)}
        folders.append(make_run(tmp_path / f"run-{parameters}", areas, size=f"{parameters}", parameters=parameters))
    text = text_of(report(*folders))
    assert "3 runs of 3 sizes (1000000, 2000000, 4000000)" in text
    assert "The fitted law is T = 1.6×10⁻⁵·P^1.000" in text
    assert "paper: T = 1.3×10⁻⁵·P^0.827" in text
    assert "Turned 3 of 3" in text
    assert all(f"run-{p} {p} rotation 0 cycle 10 10M 60.00" in text for p in (1_000_000, 2_000_000, 4_000_000))


def test_onsets_not_yet_seen_are_drawn_as_bounds(tmp_path):
    folders = []
    for parameters, lowest in ((1_000_000, 2), (2_000_000, 4), (4_000_000, 10)):
        areas = {cycle: 60.0 + abs(cycle - lowest) for cycle in range(1, 11)}
        folders.append(make_run(tmp_path / f"run-{parameters}", areas, size=f"{parameters}", parameters=parameters))
    text = text_of(report(*folders))
    assert "not turned yet: at least (censored)" in text and "Turned 2 of 3" in text and "after task 80" in text


def test_rotation_and_stationary_are_set_against_each_other(tmp_path):
    rotation, stationary = make_run(tmp_path / "r"), make_run(tmp_path / "s", schedule="stationary")
    text = text_of(report(rotation, stationary))
    assert "One schedule against another" in text and "100K, stationary" in text


def test_run_without_configuration_cycles_or_log_is_reported_with_its_gaps(tmp_path):
    text = text_of(report(make_run(tmp_path / "bare", bare=True, log=False)))
    assert "A model, trained for 240 steps, probed 4 times on vi." in text
    assert "step 160 – 6.000 1.600 54.00 −10.00% –" in text
    for gap in (
        "No config.yaml",
        "Probes without a cycle",
        "Probes without a token count: the horizontal axis is the optimizer step",
        "No probe known to be of cycle 1: ΔAUC is against step 80 instead",
        "No onset under configuration",
        "Bits per byte of some probes",
        "No training log",
        "No forgetting.jsonl",
        "No diagnostics.jsonl",
    ):
        assert gap in text
    assert "nan" not in text.lower().split() and "None" not in text.split()


def test_run_without_probes_says_so(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "probes.jsonl").unlink()
    text = text_of(report(folder))
    assert "No probe has been recorded yet" in text and "No probes.jsonl: there is no AUC to report" in text


@pytest.mark.parametrize("cycles", [[0], [1], [0, 1], [1, 2]])
def test_first_probes_of_a_run_are_enough_for_a_page(tmp_path, cycles):
    text = text_of(report(make_run(tmp_path / "run", {cycle: AREAS[cycle] for cycle in cycles})))
    assert all(f"cycle {cycle} " in text for cycle in cycles)


def test_several_probes_in_one_task_leave_the_onset_open(tmp_path):
    probes = [probe(1, 60.0), probe(1, 54.0, step=100, tokens=1_250_000), probe(2, 57.0)]
    text = text_of(report(make_run(tmp_path / "run", probes=probes)))
    assert "No onset under configuration 0123456789ab: several of its probes fall in one task instance" in text


def test_synthetic_languages_are_not_called_by_natural_names(tmp_path):
    text = text_of(report(make_run(tmp_path / "run", source="synthetic")))
    assert "synthetic languages" in text and "Vietnamese" not in text and "English" not in text


def test_markup_in_names_stays_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>&\"'$\\frac{$"
    folder = make_run(tmp_path / evil, languages=[evil], size=evil, schedule=evil, parameters=1000)
    lines = [{"step": 10 * n, "loss": 3.0 - n, "task": 1, "language": evil, "tokens": n} for n in range(3)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    diagnosis = {"measures": {evil: {"overall": 0.5, "per_layer": [0.5]}}, "not_measured": {evil: evil}}
    write_lines(folder / "diagnostics.jsonl", {"step": 0, "tokens": 0, "diagnostics_config_hash": evil} | diagnosis)
    other = make_run(tmp_path / "other", size=evil + "2", parameters=2000)
    allowed = {tag for tag, _ in Tags(report(make_run(tmp_path / "plain"))).found} | {"ul", "li", "details", "summary"}
    for folders in ([folder], [folder, other]):
        html = report(*folders, figures=tmp_path / "figures")
        assert {tag for tag, _ in Tags(html).found} <= allowed
        assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert all(re.fullmatch(r"[a-z0-9-]+\.(svg|png)", path.name) for path in (tmp_path / "figures").iterdir())


def test_figures_are_written_as_svg_and_png(full_run, tmp_path):
    report(full_run, figures=tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = ["auc", "delta-auc", "learning-curves", "training-loss", "forgetting", "diagnostics-dormant-fraction"]
    drawn += ["layers-dormant-fraction", "delta-auc-and-dormant-fraction"]
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert (tmp_path / "figures" / "auc.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figures" / "auc.svg").read_text()
    assert svg.startswith("<?xml") and "var(--" not in svg


def test_figures_of_runs_of_one_name_do_not_overwrite_each_other(tmp_path):
    folders = [make_run(tmp_path / parent / "run", seed=seed) for seed, parent in enumerate("ab")]
    report(*folders, to=tmp_path / "page.html", figures=tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("learning-curves-run-*.svg"))) == 2


def test_same_records_give_the_same_page(full_run):
    assert report(full_run) == report(full_run)


def test_steep_start_gets_a_second_panel(tmp_path):
    steps = list(range(0, 101, 5))

    def curves(steepness):
        losses = [2 + steepness * 0.5 ** (step / 2) + 0.1 * (100 - step) / 100 for step in steps]
        return [probe(c, 100.0, probe_steps=steps, losses=losses, final_loss=losses[-1]) for c in (1, 2)]

    for name, steepness, panels in (("steep", 5, 2), ("flat", 0, 1)):
        run = read_run(make_run(tmp_path / name, probes=curves(steepness)))
        assert len(learning_curves(probe_series(run, "turning_point")[0], 984).axes) == panels


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (950, "950"), (49_152, "49.2K"), (2e6, "2M"), (999_999, "1M"), (3.5e9, "3.5B"), (1.8e12, "1.8T")],
)
def test_counts_have_units(value, text):
    assert compact(value) == text


@pytest.mark.parametrize("value, text", [(0, "0"), (-2.5, "−2.5"), (2450, "2,450"), (0.02, "0.02"), (20_000, "20K")])
def test_tick_labels_are_plain(value, text):
    assert plain(value) == text


def test_command_writes_into_the_run_folder_by_default(full_run, capsys):
    assert main(["report", str(full_run)]) == 0
    assert capsys.readouterr().out.strip() == str(full_run / "report.html")
    assert "<!DOCTYPE html>" in (full_run / "report.html").read_text()


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    run, empty = make_run(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()
    broken = make_run(tmp_path / "broken", probes=[{"step": 80, "losses": [1.0]}])
    page = str(tmp_path / "page.html")
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(empty)], "is not a run folder"),
        ([str(run), str(run)], "say where with -o FILE"),
        ([str(run), str(run), "-o", page], "is named twice"),
        ([str(broken), "-o", page], "the probe of step 80: it lacks language, adaptation"),
        ([str(run), "-o", page, "--onset-rule", "guess"], "'guess' is not an onset rule"),
        ([str(run), "-o", page, "--onset-rule", "statistical"], "records with two or more repeats"),
        ([str(run), "-o", str(run / "config.yaml" / "page.html")], "cannot be written"),
        ([str(run), "-o", page, "--figures", str(run / "config.yaml")], "figures: "),
    ):
        assert main(["report", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("hf-plasticity: error: ") and words in err, err
    assert not Path(page).exists()


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(PlasticityError, match="runs: there is none"):
        write_report([], tmp_path / "page.html")


BLOCKED = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'evaluate', 'datasets']))\n"


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def test_report_works_without_torch(full_run, tmp_path):
    other = make_run(tmp_path / "other", size="400K")
    code = BLOCKED + "from hf_plasticity.cli import main; sys.exit(main(['report', *sys.argv[1:]]))"
    python(code, str(full_run), "-o", str(tmp_path / "one.html"))
    python(code, str(full_run), str(other), "-o", str(tmp_path / "two.html"))
    assert "Onset and size" in (tmp_path / "two.html").read_text()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from hf_plasticity.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'numpy', 'matplotlib', 'torch', 'yaml'} & set(sys.modules)))"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (101.0, "scatter by 1.2% about the trend of their neighbours, so that this rise is no sign of a turn."),
        (130.0, "scatter by 1.2% about the trend of their neighbours."),
    ],
)
def test_a_rise_is_called_none_where_the_areas_scatter_as_much(tmp_path, last, words):
    # They lie 1 from the line between their neighbours, but for the last but one: 1 / √1.5 · 1.4826 = 1.21.
    areas = dict(enumerate([120.0, 100.0, 101.0, 100.0, 101.0, 100.0, last]))
    assert words in " ".join(report(make_run(tmp_path / "run", areas)).split())


def test_a_model_that_learns_best_untrained_is_said_to(tmp_path):
    text = " ".join(report(make_run(tmp_path / "run", {0: 50.0, 1: 60.0, 2: 54.0, 3: 57.0})).split())
    assert (
        "Once trained, it never learned Vietnamese as fast as untrained (AUC 50.00), and fastest after cycle 2" in text
    )
