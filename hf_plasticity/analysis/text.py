"""Numbers and words for reports and model cards."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


MISSING = "–"


class Estimate(NamedTuple):
    """A value with its standard error, `None` if that is not known."""

    value: float
    error: float | None = None


def minus(text: str) -> str:
    """The same text with a true minus sign."""
    return text.replace("-", "−")


def number(value: float, error: float | None = None) -> str:
    """Four significant digits or all before the point, with the error if there is one: 54.00, 35,875, 707.5 ± 5.3."""
    decimals = 3 - math.floor(math.log10(abs(value))) if value else 0
    return _with_error(value, error, max(0, decimals))


def signed_percent(value: float, digits: int = 1, error: float | None = None) -> str:
    """A percentage with its sign, and its error if there is one: +4.2%, −1.28 ± 0.05%."""
    return _with_error(value, error, digits, "+") + "%"


def _with_error(value: float, error: float | None, decimals: int, sign: str = "") -> str:
    if error:
        decimals = max(decimals, -math.floor(math.log10(error)))
    text = f"{value:{sign},.{decimals}f}" + (f"\u00a0±\u00a0{error:,.{decimals}f}" if error else "")
    return minus(text)


def auc_text(estimate: Estimate) -> str:
    return number(*estimate)


def change_text(estimate: Estimate) -> str:
    return signed_percent(estimate.value, 2, estimate.error)


def compact(value: float) -> str:
    """A count in at most three digits and a unit: 950, 49.2K, 2M, 3.5B, 1.8T."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """The names as a phrase: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def missing(value: Any, form: Callable[[Any], str] = str) -> str:
    """The formatted `value`, or a dash if it was not recorded."""
    return MISSING if value is None else form(value)


def setting(value: Any) -> str:
    """The value of a setting, nearly as in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
