"""Artificial run folders and their report."""

import base64
import json
import re
from html import unescape

import yaml

from hf_plasticity.analysis.report import write_report
from hf_plasticity.records import read_run


HASH = "0123456789ab"
# Losses (6, x, x) at steps 0, 10, 20 have the area 10·(6 + x)/2 + 10·x = 30 + 15·x.
AREAS = {0: 90.0, 1: 60.0, 2: 54.0, 3: 57.0}


def probe(cycle, area, probe_config_hash=HASH, **fields):
    x = (area - 30) / 15
    return {
        "cycle": cycle,
        "task": 8 * cycle,
        "step": 80 * cycle,
        "tokens": 1_000_000 * cycle,
        "language": "vi",
        "adaptation": "full",
        "probe_steps": [0, 10, 20],
        "losses": [6.0, x, x],
        "auc": area,
        "mean_loss": area / 20,
        "start_loss": 6.0,
        "final_loss": x,
        "bits_per_byte": 1.25,
        "delta_auc": None,
        "seed": 0,
        "probe_config_hash": probe_config_hash,
        "seconds": 1.0,
    } | fields


def make_run(folder, areas=AREAS, size="100K", probes=None, parameters=None, log=True, bare=False, **config):
    folder.mkdir(parents=True)
    probes = probes or [probe(cycle, area) for cycle, area in areas.items()]
    if bare:
        probes = [one | {"cycle": None, "task": None, "tokens": None, "bits_per_byte": None} for one in probes]
    else:
        settings = {"size": size, "schedule": "rotation", "languages": ["en", "fr"], "source": "local", "seed": 0}
        settings |= {"cycles": 3, "weight_decay": 0.1, "hub_token": "hf_secret"} | config
        settings["provenance"] = {"tasks_per_cycle": 8} | settings.get("provenance", {})
        if parameters:
            settings["provenance"] |= {"num_non_embedding_parameters": parameters, "versions": {"torch": "2.13.0"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "probes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in probes))
    if log:
        entries = [
            {
                "step": 10 * n,
                "loss": 3 - 0.01 * n,
                "task": 1 + n // 4,
                "language": ("en", "fr")[n // 4 % 2],
                "tokens": 100 * n,
            }
            for n in range(1, 16)
        ]
        history = [*entries, {"step": 160, "probe/auc": 54.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def report(*folders, to=None, **options):
    path = to or folders[0].parent / "page.html"
    write_report([read_run(folder) for folder in folders], path, **options)
    return path.read_text(encoding="utf-8")


def diagnosis(cycle, measures, not_measured=None, config_hash="d"):
    place = {"cycle": cycle, "task": 8 * cycle, "step": 80 * cycle, "tokens": 10**6 * cycle}
    return place | {
        "diagnostics_config_hash": config_hash,
        "measures": measures,
        "not_measured": not_measured or {},
        "seconds": 0.1,
    }


def text_of(html):
    """The visible text of a page without tags and line breaks, except in figures."""
    without_style = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", without_style)).split())


def attached(html, kind):
    """The files of a kind (`image/svg+xml`, `text/csv`) in the data URLs of a page, in order."""
    found = re.findall(rf'"data:{re.escape(kind)}[^",]*;base64,([^"]*)"', html)
    return [base64.b64decode(data).decode() for data in found]


def figures_of(html):
    """The figures of a page as SVG, by their alternative text."""
    return dict(zip(map(unescape, re.findall(r'alt="([^"]*)"', html)), attached(html, "image/svg+xml")))


def first_screen(html):
    """The sentences with the result of a page."""
    return " ".join(text_of(one) for one in re.findall(r'<p class="result">(.*?)</p>', html, flags=re.DOTALL))


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
