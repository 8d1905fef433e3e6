"""The figures of a report, drawn with matplotlib (extra ``report``); each returns a PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.errors import MissingDependencyError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = npt.NDArray[np.float64]

MAP_ITEMS = 1000  # items drawn on the 2-D map
MAP_CLASSES = 10  # classes that get a color of their own
_INK, _MUTED = "#1c2430", "#8a94a3"
_COLORS = ("#2962c9", "#d1495b", "#2e8b57", "#e0a100", "#7b4fb5",
           "#00899e", "#b5562b", "#d276b0", "#7f8a1e", "#556270")  # fmt: skip


def require_report_packages() -> None:
    """Raise MissingDependencyError unless the packages of the extra ``report`` are installed."""
    for package, module in (("matplotlib", "matplotlib"), ("openTSNE", "openTSNE"), ("pillow", "PIL")):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingDependencyError(package, "report", "a report") from error


def map_curves_figure(curves: Mapping[str, npt.NDArray[np.float64]], chance: float) -> bytes:
    """mAP@k against k, a line for each way of ranking."""
    figure, axes = _axes()
    for number, (name, curve) in enumerate(curves.items()):
        _line(axes, number, name, curve, "--" if name.startswith("float") else "-")
    axes.axhline(100 * chance, color=_MUTED, lw=1, ls=":")
    axes.text(1, 100 * chance, " chance", color=_MUTED, va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="k, items looked at (log scale)", ylabel="mAP@k, %")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return _png(figure)


def curves_figure(lines: Mapping[str, Sequence[float] | npt.NDArray[np.float64]], what: str) -> bytes:
    """A quality for every k from 1 on, a line for each way of ranking; shares of 1, shown in percent."""
    figure, axes = _axes()
    figure.set_size_inches(7.2, 4.2)
    for number, (name, shares) in enumerate(lines.items()):
        _line(axes, number, name, np.asarray(shares), ("-", "--", ":")[number // 10 % 3])
    axes.set(xlabel="k", ylabel=f"{what}, %")
    axes.set_xlim(left=1)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def map_against_bytes_figure(
    codes: Mapping[int, float], floats: Mapping[str, tuple[int, float]], chance: float
) -> bytes:
    """mAP against bytes per item: ``codes`` bits to mAP, ``floats`` name to (bytes, mAP)."""
    figure, axes = _axes()
    sizes = [-(-bits // 8) for bits in codes]
    scores = [100 * score for score in codes.values()]
    axes.plot(sizes, scores, "o-", color=_COLORS[0], lw=1.8, label="codes, asymmetric Hamming")
    for bits, size, score in zip(codes, sizes, scores, strict=True):
        axes.annotate(f"{bits} bits", (size, score), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    for number, (name, (size, score)) in enumerate(floats.items()):
        axes.plot([size], [100 * score], "s", color=_COLORS[1 + number], label=name)
        axes.axhline(100 * score, color=_COLORS[1 + number], lw=0.8, ls="--")
    axes.axhline(100 * chance, color=_MUTED, lw=1, ls=":")
    axes.set_xscale("log", base=2)
    axes.set(ylim=(0, 105), xlabel="bytes an item (log scale)", ylabel="mAP@k, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _png(figure)


def methods_figure(lines: Mapping[str, Sequence[tuple[float, float]]], what: str) -> bytes:
    """A quality against bytes per item: for each method its (bytes, share) points; a single point is a square."""
    figure, axes = _axes()
    figure.set_size_inches(9, 6)
    for number, (name, points) in enumerate(lines.items()):
        sizes, scores = zip(*sorted(points), strict=True)
        style = "s" if len(sizes) == 1 else ("o-", "o--", "o:")[number // 10 % 3]
        shares = [100 * score for score in scores]
        axes.plot(sizes, shares, style, color=_COLORS[number % 10], label=_plain(name), lw=1.4, ms=4)
    axes.set_xscale("log", base=2)
    axes.set(ylim=(0, 105), xlabel="bytes an item (log scale)", ylabel=f"{what}, %")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def frontier_figure(points: Mapping[str, Sequence[float]], columns: Sequence[str], strong: Collection[str]) -> bytes:
    """What a method gains in the first quality against what it gives up in the others, a panel for each of those.

    Args:
        points: for each method its shares, one for each column.
        columns: what the shares are of, two or more.
        strong: methods that are drawn larger and in color.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * (len(columns) - 1), 6), layout="constrained")
    for axes, column in zip(
        figure.subplots(1, len(columns) - 1, squeeze=False)[0], range(1, len(columns)), strict=True
    ):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ee", lw=0.8)
        for name, shares in points.items():
            x, y = 100 * shares[column], 100 * shares[0]
            color, size = (_COLORS[1], 7) if name in strong else (_MUTED, 4)
            axes.plot([x], [y], "o", color=color, ms=size)
            axes.annotate(_plain(name), (x, y), (4, 3), textcoords="offset points", fontsize=6, color=_INK)
        axes.set(xlabel=f"{columns[column]}, %", ylabel=f"{columns[0]}, %")
    return _png(figure)


def bit_balance_figure(balance: npt.NDArray[np.float64]) -> bytes:
    """Share of ones of every bit."""
    figure, axes = _axes()
    axes.bar(np.arange(len(balance)), 100 * balance, width=0.9, color=_COLORS[0])
    axes.axhline(50, color=_INK, lw=0.8, ls="--")
    axes.set(xlim=(-0.6, len(balance) - 0.4), ylim=(0, 100), xlabel="bit", ylabel="items with a 1, %")
    return _png(figure)


def map_of_items_figure(panels: Mapping[str, Points], labels: npt.NDArray[Any] | None) -> bytes:
    """2-D maps of the same items side by side, colored by class, where it is known (paper, Figure 3).

    Panels are, by name, the items' places (n, 2) that ``project`` gives; labels (n,) or (n, C).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4.6), layout="constrained")
    shown, groups = _classes(labels, len(next(iter(panels.values()))))
    columns = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (name, points) in zip(columns, panels.items(), strict=True):
        for number, group in enumerate(groups):
            color = _MUTED if shown[number] is None else _COLORS[number % 10]
            alpha = 0.3 if shown[number] is None else 0.85
            axes.scatter(*points[group].T, s=9, color=color, alpha=alpha, lw=0, label=shown[number])
        axes.set_title(_plain(name), fontsize=10, color=_INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#d5dae1")
    if any(shown):
        handles, texts = columns[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=8, markerscale=2)
    return _png(figure)


def project(values: npt.NDArray[np.float32], metric: str) -> Points:
    """Places (n, 2) in the plane of items (n, d), by t-SNE with this metric; the same for the same values."""
    from openTSNE import TSNE

    perplexity = min(30.0, max(1.0, (len(values) - 1) / 3))
    with warnings.catch_warnings():  # of its numerical libraries, nothing a reader could act upon
        warnings.simplefilter("ignore")
        model = TSNE(perplexity=perplexity, metric=metric, neighbors="exact", n_jobs=1, random_state=0, n_iter=350)
        return np.asarray(model.fit(values))


def _classes(labels: npt.NDArray[Any] | None, items: int) -> tuple[list[str | None], list[npt.NDArray[np.int64]]]:
    """The commonest classes by name, the rest as None; and the rows of each."""
    if labels is None:
        return [None], [np.arange(items)]
    if labels.ndim == 2:
        labels = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    common = sorted(np.argsort(-counts, kind="stable")[:MAP_CLASSES])
    rest = np.flatnonzero(~np.isin(inverse, common))
    groups = [np.flatnonzero(inverse == number) for number in common]
    shown: list[str | None] = [_plain(str(names[number])) for number in common]
    # the rest first, so that it lies behind
    return ([*shown, None], [*groups, rest]) if len(rest) else (shown, groups)


def _plain(text: str) -> str:
    """Text that is drawn as it stands: no formula between dollars, nothing left out for its underscore, no controls."""
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _line(axes: Any, number: int, name: str, shares: npt.NDArray[np.float64], style: str) -> None:
    places, color = np.arange(1, len(shares) + 1), _COLORS[number % 10]
    axes.plot(places, 100 * shares, style, color=color, label=_plain(name), lw=1.8)


def _axes() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of characters that its font does not have
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
