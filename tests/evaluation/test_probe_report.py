"""A probe's text and its section of the page, of numbers that are known."""

import re
from html.parser import HTMLParser

import pytest

from fourreal.evaluation.line_chart import line_chart
from fourreal.evaluation.probe import Probed, Row
from fourreal.evaluation.probe_report import layer_lines, main_lines, probe_section, probe_text

SIGMAS = (0.5, 1.0)


def rows(what, change, differences, stream=None, layer=None):
    """Of two grids, 20 and 22 dB as they are at sigma 0.5, a dB less at sigma 1."""
    return [
        Row(what, change, stream, layer, sigma, [20 - place + difference, 22 - place + difference])
        for place, (sigma, difference) in enumerate(zip(SIGMAS, differences, strict=True))
    ]


@pytest.fixture
def two_streams() -> Probed:
    found = rows("messages", "kept", (0, 0))
    for change, loss in (("silent", -1), ("foreign", -3)):
        found += rows("messages", change, (loss, 2 * loss))
        for stream, share in (("time", 0.25), ("view", 0.5)):
            found += rows("messages", change, (share * loss, share * loss), stream)
            for layer in range(2):
                found += rows("messages", change, (share * loss / 4, (layer + 1) * share * loss / 2), stream, layer)
        found += rows("hints", change, (loss - 0.5, 0))
    by_sigma = [[0.1, 0.25], [0.3, 0.5]]
    return Probed(found, [0.02, 0.4], by_sigma, {"time": by_sigma, "view": by_sigma[::-1]}, SIGMAS)


@pytest.fixture
def silent_streams() -> Probed:
    """Of fusion `none`, told nothing."""
    return Probed(rows("messages", "kept", (0, 0)), [0.5, 0.75], [[0.5], [0.25]], {}, SIGMAS)


def test_table_is_the_mean_as_it_is_then_differences_with_messages_before_conditions(two_streams):
    assert main_lines(two_streams) == [
        ("as it is", ["21.00", "20.00"]),
        ("messages silent", ["-1.00", "-2.00"]),
        ("messages silent, time stream's", ["-0.25", "-0.25"]),
        ("messages silent, view stream's", ["-0.50", "-0.50"]),
        ("messages foreign", ["-3.00", "-6.00"]),
        ("messages foreign, time stream's", ["-0.75", "-0.75"]),
        ("messages foreign, view stream's", ["-1.50", "-1.50"]),
        ("hints silent", ["-1.50", "+0.00"]),
        ("hints foreign", ["-3.50", "+0.00"]),
        ("heads apart", ["2.0%", "40.0%"]),
    ]
    layers = dict(layer_lines(two_streams))
    assert len(layers) == 8 and layers["messages foreign, view stream's, layer 1"] == ["-0.38", "-1.50"]


def test_text_is_aligned_under_a_head_of_noise_levels(two_streams):
    head, *lines = probe_text("nano", two_streams).splitlines()
    assert " ".join(head.split()) == "nano, one step, mean over 2 grids sigma 0.5 sigma 1"
    assert len({len(line) for line in (head, *lines)}) == 1


def numbers_of(chart: str) -> list[float]:
    return [float(text.replace("−", "-")) for text in re.findall(r'text-anchor="end">(-?[\d.]+)</text>', chart)]


def test_section_has_both_tables_and_four_plots_whose_axes_span_their_values(two_streams):
    page = probe_section({"a<b": two_streams})
    HTMLParser().feed(page)
    assert page.count("<h2>") == 1 and page.count("<table") == 2 and "a<b" not in page and "nan" not in page
    assert "<th>messages foreign, view stream&#x27;s</th><td>−1.50</td><td>−1.50</td>" in page
    charts = page.split("<svg")[1:]
    titles = re.findall(r"<figcaption>a&lt;b: (.*?)</figcaption>", page)
    assert [title.split(" ")[0] for title in titles] == ["PSNR", "change", "gap", "strength"]
    values = [(14, 21), (-1.5, 0), (10, 50), (10, 50)]
    for chart, (low, high) in zip(charts, values, strict=True):
        rules = numbers_of(chart)
        assert min(rules) <= low and max(rules) >= high and max(rules) - min(rules) < 1.7 * (high - low)
        assert 4 <= len(rules) <= 9


def test_a_model_whose_streams_say_nothing_has_no_table_nor_plot_of_messages(silent_streams):
    page = probe_section({"none": silent_streams})
    assert page.count("<table") == 1 and page.count("<svg") == 2
    assert "foreign</th>" not in page and "strength of" not in page and "gap of" in page
    assert [label for label, _ in main_lines(silent_streams)] == ["as it is", "heads apart"]


@pytest.mark.parametrize("values", [(20.0, 27.5), (-0.03, 0.01), (5.0, 5.0), (0.0, 1000.0)])
def test_rules_of_a_chart_are_a_few_round_numbers_around_its_values(values):
    rules = numbers_of(line_chart({"a": ((0, 1), values)}, "x", "y"))
    assert rules == sorted(rules) and rules[0] <= min(values) and rules[-1] >= max(values)
    assert 2 <= len(rules) <= 9
    assert all(len(f"{rule:g}".lstrip("-").replace(".", "").strip("0")) <= 2 for rule in rules)
