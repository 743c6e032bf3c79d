"""From Matplotlib to SVG that is part of a page: its colours and letters are the page's, and it needs nothing else."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Matplotlib draws in these names of colours; the page's style sheet says what they are, in light and in dark.
INK = "#010203"
GRID = "#040506"
SOFT = "#070809"
SERIES = ("#0a0b00", "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")

STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small, and to be found and read aloud
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "spkd_keras",
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draws and saves in the page's style."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def inline(figure: Any, identity: str, description: str) -> str:
    """Returns a figure as an `<svg>` element, with a text for those who do not see it.

    Args:
        figure: drawn and given within `page_style`.
        identity: unlike that of any other figure of the page; names in the figure are made unique by it.
        description: what is to be seen.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{identity}-", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)").replace(SOFT, "var(--soft)")
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{html.escape(description)}" viewBox="0 0 {width} {height}">'
    )
    return re.sub(r"^<svg[^>]*>", lambda _: opening, svg)
