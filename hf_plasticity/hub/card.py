"""The model card of a run, rendered from its records."""

import re
from functools import partial
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from ..analysis.figures import render
from ..analysis.sections.probes import delta_auc_figure
from ..analysis.series import ProbeSeries, is_untrained, language_name, num_parameters, probe_series
from ..analysis.summary import run_result, run_summary
from ..analysis.text import compact, missing, number, signed_percent
from ..data.sources import SOURCES
from ..records import RunRecord


CARD_FILE, FIGURE_FILE = "README.md", "delta_auc.png"
TEMPLATE = "card.md.jinja"
PAPER = "2606.24752"
# The Hub accepts no other names of languages.
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def delta_auc_png(run: RunRecord) -> bytes | None:
    """The ΔAUC of a run's probes as a PNG; `None` with fewer than two of the trained model."""
    drawable = [series for series in probe_series(run) if len(series.trained) > 1]
    if not drawable:
        return None
    return render(partial(delta_auc_figure, drawable[0]), "png")[0]


def render_card(
    run: RunRecord, repo_id: str, branches: list[str], finished: bool, has_model: bool, figure: bool
) -> str:
    """
    The card of a run.

    Args:
        run ([`~records.RunRecord`]): The records of the run, with a configuration without private values.
        repo_id (`str`): Its repository.
        branches (`list[str]`): The branches of probed checkpoints in it.
        finished (`bool`): Whether the run is finished.
        has_model (`bool`): Whether `main` has a model: the final one, or that of a run which was extended since.
        figure (`bool`): Whether `main` has the plot of ΔAUC.

    Returns:
        `str`: Markdown with metadata.
    """
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    template = environment.from_string((files(__package__) / TEMPLATE).read_text(encoding="utf-8"))
    series = probe_series(run)
    return template.render(
        metadata=metadata(run, series).to_yaml(),
        name=run.name,
        repo_id=repo_id,
        branches=branches,
        finished=finished,
        has_model=has_model,
        figure=FIGURE_FILE if figure else None,
        summary=" ".join([run_summary(run, series), *run_result(series)]),
        config=run.config,
        provenance=run.config.get("provenance", {}),
        languages=[language_name(run, code) for code in run.config.get("languages", [])],
        probe_language=language_name(run, run.config.get("probe_language", "")),
        text=text_of(run),
        optimizer=optimizer_of(run),
        parameters=num_parameters(run),
        tables=[table(one) for one in series],
        paper=PAPER,
    )


def metadata(run: RunRecord, series: list[ProbeSeries]) -> ModelCardData:
    """The metadata of the card. A run starts from random weights, so there is no base model."""
    config = run.config
    natural = SOURCES[config["source"]].natural if "source" in config else True
    results = [result for one in series if one.trained for result in evaluation_results(run, one)]
    return ModelCardData(
        language=[code for code in config.get("languages", []) if LANGUAGE_CODE.fullmatch(code)] or None
        if natural
        else None,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hf-plasticity", "plasticity", "continual-learning", "research", f"arxiv:{PAPER}"],
        datasets=datasets_of(run) or None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def evaluation_results(run: RunRecord, series: ProbeSeries) -> list[EvalResult]:
    """The last probe of a series, for the `model-index`."""
    last, language = series.trained[-1], language_name(run, series.language)
    values = {
        "probe_auc": ("Area under the probe's loss curve", last["auc"]),
        "delta_auc": ("ΔAUC (%)", series.changes[-1]),
        "bits_per_byte": ("Bits per byte at the end of the probe", last.get("bits_per_byte")),
    }
    datasets = datasets_of(run)
    return [
        EvalResult(
            task_type="text-generation",
            task_name=f"Adaptation to {language} after {series.label(last)}",
            dataset_type=datasets[-1] if datasets else run.config.get("source", "unknown"),
            dataset_name=f"{language}, held out",
            metric_type=metric,
            metric_name=metric_name,
            metric_value=round(value, 4),
        )
        for metric, (metric_name, value) in values.items()
        if value is not None
    ]


def datasets_of(run: RunRecord) -> list[str]:
    """The datasets on the Hub that a run reads."""
    source = run.config.get("source")
    return [] if source is None else SOURCES[source].hub_datasets(run.config)


def text_of(run: RunRecord) -> str:
    """A description of the text of a run."""
    source = run.config.get("source")
    return "text that is not named in the records" if source is None else SOURCES[source].describe(run.config)


def optimizer_of(run: RunRecord) -> str:
    """The optimizer of a run; for AdamW with its β."""
    config = run.config
    optim = config.get("optim", "adamw")
    return f"AdamW with β = ({config['adam_beta1']}, {config['adam_beta2']})" if "adamw" in optim else f"`{optim}`"


def table(series: ProbeSeries) -> dict[str, Any]:
    """The probes of a series as rows of a table."""
    changes = iter(series.changes)
    rows = []
    for probe in series.probes:
        untrained = is_untrained(probe)
        change = "" if untrained else signed_percent(next(changes), 2)
        name = series.label(probe)
        rows.append(
            [
                f"{name} (untrained)" if untrained else name,
                missing(probe.get("tokens"), compact),
                f"{probe['start_loss']:.3f}",
                f"{probe['final_loss']:.3f}",
                number(probe["auc"]),
                "reference" if probe is series.reference else change or "–",
                missing(probe.get("bits_per_byte"), lambda value: f"{value:.3f}"),
            ]
        )
    return {"language": language_name(series.run, series.language), "adaptation": series.adaptation, "rows": rows}
