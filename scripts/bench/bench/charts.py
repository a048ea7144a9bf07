"""Charts as SVG, written by hand: horizontal bars in groups, and targets. Readable on light and on dark ground."""

from collections.abc import Callable
from html import escape

WIDTH = 880
NAME_WIDTH = 300
VALUE_WIDTH = 170
BAR_HEIGHT, BAR_GAP, GROUP_GAP = 18, 5, 34
TOP = 70
# Colours that differ in lightness as well, for those who see hues alike; each with its own for dark ground.
KINDS = {"pop": ("#1a56c4", "#6ea8ff"), "pop-other": ("#5f93e8", "#a9caff"), "nginx": ("#2e7d4f", "#5fc088"),
         "haproxy": ("#b8661b", "#f0a35e"), "other": ("#6b7280", "#a6adbb")}


def kind_of(label: str) -> str:
    """Which colour a contestant has."""
    first = label.split(" ")[0]
    if first == "pop":
        return "pop"
    return next((kind for kind in ("nginx", "haproxy") if first.startswith(kind)),
                "pop-other" if first.startswith("pop") else "other")


def number(value: float) -> str:
    """Three digits or so; thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio_format(ratio: float) -> Callable[[float], str]:
    """How to write a ratio and its quartiles: a target of 0.12 wants a third digit."""
    return number if ratio >= 1 else "{:.3f}".format


def style() -> str:
    light = "".join(f".{kind}{{fill:{colours[0]}}}" for kind, colours in KINDS.items())
    dark = "".join(f".{kind}{{fill:{colours[1]}}}" for kind, colours in KINDS.items())
    return (
        "<style>text{font-family:system-ui,'DejaVu Sans',Verdana,sans-serif;font-size:13px;fill:#1f2328}"
        ".title{font-size:16px;font-weight:600}.quiet{fill:#59636e;font-size:12px}.group{font-weight:600}"
        ".ground{fill:#ffffff}.axis{stroke:#8c959f;stroke-width:1}.spread{stroke:#1f2328;stroke-width:1.2}"
        f".met{{fill:#2e7d4f}}.missed{{fill:#b42318}}.limit{{stroke:#1f2328;stroke-width:2}}{light}"
        "@media (prefers-color-scheme: dark){text{fill:#e6edf3}.quiet{fill:#9198a1}.ground{fill:#0d1117}"
        ".axis{stroke:#656c76}.spread,.limit{stroke:#e6edf3}.met{fill:#5fc088}.missed{fill:#ff7b72}"
        f"{dark}}}</style>")


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def rect(kind: str, x: float, y: float, width: float) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y:.1f}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>'


def spread_line(low: float, high: float, y: float) -> str:
    return f'<line class="spread" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>'


def frame(title: str, subtitle: str, height: float, parts: list) -> str:
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-label="{escape(title)}">')
    ground = f'<rect class="ground" width="{WIDTH}" height="{height:.0f}" rx="6"/>'
    heads = [text(20, 28, title, "title"), text(20, 48, subtitle, "quiet")]
    return "\n".join([head, style(), ground, *heads, *parts, "</svg>"]) + "\n"


def bars(title: str, subtitle: str, groups: list) -> str:
    """Groups are (name, [(label, words, spread)]), a spread being a table with median, min and max; shorter is better."""
    greatest = max((spread["max"] for _, rows in groups for _, _, spread in rows), default=1.0) or 1.0
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH - 20
    parts, y = [], float(TOP)
    for name, rows in groups:
        parts.append(text(20, y + 12, name, "group"))
        y += 22
        top = y
        for label, words, spread in rows:
            parts.extend(bar(y, label, words, spread, room / greatest))
            y += BAR_HEIGHT + BAR_GAP
        parts.append(f'<line class="axis" x1="{NAME_WIDTH}" y1="{top - 4:.1f}" x2="{NAME_WIDTH}" y2="{y:.1f}"/>')
        y += GROUP_GAP - 22
    return frame(title, subtitle, y + 6, parts)


def bar(y: float, label: str, words: str, spread: dict, scale: float) -> list:
    """One bar, its spread as a line across its end, and its figures."""
    middle, length = y + BAR_HEIGHT / 2, max(spread["median"] * scale, 0.5)
    low, high = NAME_WIDTH + spread["min"] * scale, NAME_WIDTH + spread["max"] * scale
    told = number(spread["median"])
    if spread["count"] > 1:
        told += f" ({number(spread['min'])}–{number(spread['max'])})"
    return [
        text(NAME_WIDTH - 8, middle + 4.5, words, "", "end"),
        rect(kind_of(label), NAME_WIDTH, y, length),
        spread_line(low, high, middle),
        text(max(high, NAME_WIDTH + length) + 8, middle + 4.5, told),
    ]


def target_chart(title: str, subtitle: str, rows: list) -> str:
    """Rows are (words, ratio, limit), ratios being spreads: each bar is the share of its limit, so that one line is the target of
    all, and a line across its end shows the quartiles."""
    room = WIDTH - 400 - 180
    scale = room / max([1.25, *(ratio["q3"] / limit for _, ratio, limit in rows)])
    parts, y = [], float(TOP)
    for words, ratio, limit in rows:
        middle, value = y + BAR_HEIGHT / 2, ratio["median"]
        low, high = (400 + ratio[end] / limit * scale for end in ("q1", "q3"))
        kind = "met" if value <= limit else "missed"
        told = f"{ratio_format(value)(value)} of {limit:.2f}" + ("" if value <= limit else ", missed")
        parts += [
            text(392, middle + 4.5, words, "", "end"),
            rect(kind, 400, y, value / limit * scale),
            spread_line(low, high, middle),
            text(max(high, 400 + scale) + 10, middle + 4.5, told),
        ]
        y += BAR_HEIGHT + BAR_GAP + 2
    line = f'<line class="limit" x1="{400 + scale:.1f}" y1="{TOP - 6}" x2="{400 + scale:.1f}" y2="{y:.1f}"/>'
    return frame(title, subtitle, y + 14, [*parts, line])
