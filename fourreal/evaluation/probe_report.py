"""What probing checkpoints found, as text for the screen and as a section of `report.html`."""

import html
from collections.abc import Mapping, Sequence

from fourreal.evaluation.line_chart import Series, line_chart
from fourreal.evaluation.probe import CHANGES, FOREIGN, KEPT, Probed, Row

Lines = list[tuple[str, list[str]]]  # label, then a number by noise level
LEGEND = """<h2>Probe</h2>
<p>What the model answers in one step from noise level sigma, over the first control grids: PSNR in dB as it is, then how much
that changes while its streams' messages, or what it is told, are changed. <i>Silent</i> are zeros, <i>foreign</i> those of
another scene at the same noise level. Where foreign messages cost nothing, the streams have parameters there and tell each
other nothing. <i>Heads apart</i> is the mean squared distance of the two streams' answers over that of their mean from the
truth.</p>
"""


def probe_text(name: str, probed: Probed) -> str:
    """The probe of a checkpoint as aligned text, without the single layers."""
    lines = main_lines(probed)
    title = f"{name}, one step, {_grids(probed)}"
    width = max(len(title), *(len(label) for label, _ in lines)) + 2
    head = f"{title:<{width}}" + "".join(f"{f'sigma {sigma:g}':>11}" for sigma in probed.sigmas)
    body = [f"{label:<{width}}" + "".join(f"{value:>11}" for value in values) for label, values in lines]
    return "\n".join([head, *body]) + "\n"


def probe_section(probed: Mapping[str, Probed]) -> str:
    """The section of the page: for every checkpoint its tables and plots."""
    return LEGEND + "".join(_tables(name, one) + _plots(name, one) for name, one in probed.items())


def main_lines(probed: Probed) -> Lines:
    """PSNR as it is, what each change of all layers makes of it, and how far the heads are apart."""
    found = [("as it is", [f"{probed.mean(sigma):.2f}" for sigma in probed.sigmas])]
    found += [(_label(row), _differences(probed, row)) for row in _changed(probed) if row.layer is None]
    if probed.heads_gap:
        found.append(("heads apart", [f"{100 * gap:.1f}%" for gap in probed.heads_gap]))
    return found


def layer_lines(probed: Probed) -> Lines:
    """What the messages of one layer do, alone."""
    return [(_label(row), _differences(probed, row)) for row in _changed(probed) if row.layer is not None]


def _changed(probed: Probed) -> list[Row]:
    """The rows of the first noise level in which something is changed: messages, then condition by condition."""
    rows = [row for row in probed.rows if row.sigma == probed.sigmas[0] and row.change != CHANGES[KEPT]]
    order = list(dict.fromkeys(row.what for row in rows))
    return sorted(rows, key=lambda row: order.index(row.what))


def _label(row: Row) -> str:
    stream = "" if row.stream in (None, "stream") else f", {row.stream} stream's"
    layer = "" if row.layer is None else f", layer {row.layer}"
    return f"{row.what} {row.change}{stream}{layer}"


def _difference(probed: Probed, row: Row, sigma: float) -> float:
    return probed.mean(sigma, row.what, row.change, stream=row.stream, layer=row.layer) - probed.mean(sigma)


def _differences(probed: Probed, row: Row) -> list[str]:
    return [f"{round(_difference(probed, row, sigma), 2) + 0.0:+.2f}" for sigma in probed.sigmas]  # -0.0 + 0.0 is 0.0


def _grids(probed: Probed) -> str:
    return f"mean over {len(probed.rows[0].psnr)} grids"


def _tables(name: str, probed: Probed) -> str:
    """Two cards, the second for models that send messages."""
    tables = _table(f"{name}, {_grids(probed)}", main_lines(probed), probed.sigmas)
    layers = layer_lines(probed)
    if layers:
        tables += _table(f"{name}, messages of one layer alone, layers from 0", layers, probed.sigmas)
    return tables


def _table(caption: str, lines: Lines, sigmas: Sequence[float]) -> str:
    head = "".join(f"<th>sigma {sigma:g}</th>" for sigma in sigmas)
    body = "".join(
        f"<tr><th>{html.escape(label)}</th>{''.join(f'<td>{_minus(value)}</td>' for value in values)}</tr>"
        for label, values in lines
    )
    caption = f"<caption>{html.escape(caption)}</caption>"
    return f'<div class="card"><table class="scores">{caption}<tr><th></th>{head}</tr>{body}</table></div>'


def _minus(value: str) -> str:
    return value.replace("-", "−")


def _plots(name: str, probed: Probed) -> str:
    """PSNR over sigma, and by layer what messages do, how strong they are and how far the streams are apart."""
    sigmas, last = probed.sigmas, max(probed.sigmas)
    by_sigma = {"as it is": (sigmas, [probed.mean(sigma) for sigma in sigmas])} | {
        _label(row): (sigmas, [probed.mean(sigma, row.what, row.change) for sigma in sigmas])
        for row in _changed(probed)
        if row.layer is None and row.stream is None
    }
    effects: dict[str, tuple[list[int], list[float]]] = {}
    for row in _changed(probed):
        if row.layer is not None and row.change == CHANGES[FOREIGN]:
            layers, values = effects.setdefault(_label(row._replace(layer=None)), ([], []))
            layers.append(row.layer)
            values.append(_difference(probed, row, last))
    if effects:
        layers = next(iter(effects.values()))[0]
        effects = {"as it is": (layers, [0.0] * len(layers))} | effects
    gaps = {f"sigma {sigma:g}": _percent(values) for sigma, values in zip(sigmas, probed.gap, strict=False)}
    strengths = {
        f"{stream} stream's, sigma {sigma:g}": _percent(values)
        for stream, found in probed.strength.items()
        for sigma, values in zip(sigmas, found, strict=True)
        if sigma in (min(sigmas), last)
    }
    charts: list[tuple[Series, str, str]] = [
        (by_sigma, "sigma", "PSNR in dB of one step by noise level"),
        (effects, "layer", f"change of PSNR in dB by one layer's messages, sigma {last:g}"),
        (gaps, "layer", "gap of the streams in % of their mean square, by layer"),
        (strengths, "layer", "strength of the messages in % of the stream that gets them, by layer"),
    ]
    cards = (
        f'<div class="card">{line_chart(series, x_label, f"{name}: {y_label}")}</div>'
        for series, x_label, y_label in charts
        if series
    )
    return f'<div class="side wide">{"".join(cards)}</div>'


def _percent(by_layer: Sequence[float]) -> tuple[list[int], list[float]]:
    return list(range(len(by_layer))), [100 * value for value in by_layer]
