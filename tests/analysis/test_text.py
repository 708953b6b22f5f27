"""Numbers in reports."""

import pytest

from hf_plasticity.analysis.text import compact, listed, number, setting, signed_percent


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (950, "950"), (49_152, "49.2K"), (2e6, "2M"), (999_999, "1M"), (3.5e9, "3.5B"), (1.8e12, "1.8T")],
)
def test_counts_have_units(value, text):
    assert compact(value) == text


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.0, None, "0"),
        (0.018529, None, "0.01853"),
        (54.0, None, "54.00"),
        (35_875.0, None, "35,875"),
        (-2.5, None, "−2.500"),
        (694.032, 1.52, "694.0 ± 1.5"),
        (45.1234, 0.0004, "45.1234 ± 0.0004"),
        (54.0, 0.0, "54.00"),
    ],
)
def test_numbers_have_four_digits_and_an_error_at_least_one(value, error, text):
    assert number(value, error).replace("\u00a0", " ") == text


def test_percentages_have_a_sign():
    assert (signed_percent(4.21), signed_percent(-1.0)) == ("+4.2%", "−1.0%")
    assert signed_percent(-1.284, 2, 0.053).replace("\u00a0", " ") == "−1.28 ± 0.05%"


def test_names_are_listed_as_a_phrase():
    assert [listed(["a", "b", "c"][:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_settings_are_shown_nearly_as_in_yaml():
    values = [True, 0.1, "text", None, ["en", 2]]
    assert [setting(value) for value in values] == ["true", "0.1", "text", "null", '["en", 2]']
