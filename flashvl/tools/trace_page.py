"""The page of `flashvl trace`: a pure function of its JSON document."""

from __future__ import annotations

from html import escape
from typing import Any

from .trace_table import MEANINGS, heads, shapes_text, short, summary

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid; }
td { border-bottom: 1px solid #8884; }
.number { text-align: right; }
.stage td { font-weight: 600; }
.bar { background: linear-gradient(#4a7fd0, #4a7fd0) no-repeat left / var(--share) 100% #8882;
  display: inline-block; height: 0.8em; width: 8rem; }
.wide { overflow-x: auto; }
"""


def page(result: dict[str, Any]) -> str:
    """An HTML document that needs nothing else: no script, no picture, no other file."""
    timed = result["total"]["milliseconds"] is not None
    title = escape(f"flashvl trace: {result['model']}")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # Whatever a text holds, the browser fetches and runs nothing.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
            *(f"<p>{escape(line)}</p>" for line in summary(result)),
            '<div class="wide"><table>',
            "<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads(result)) + "</tr>",
            *(_row(row, timed) for row in result["rows"]),
            "</table></div>",
            *(f"<p>{escape(line)}</p>" for line in MEANINGS),
            "</body>\n</html>\n",
        ]
    )


def _row(row: dict[str, Any], timed: bool) -> str:
    kind = ' class="stage"' if row["depth"] == 1 else ""
    indent = f"padding-left: {0.6 + 1.2 * (row['depth'] - 1):.1f}rem"
    cells = [f'<td style="{indent}">{escape(row["name"])}</td>']
    cells += [f"<td>{escape(shapes_text(row[key]))}</td>" for key in ("shapes_in", "shapes_out")]
    cells.append(f'<td class="number">{row["calls"]:,}</td>')
    for key in ("parameters", "bytes", "operations"):
        cells.append(f'<td class="number" title="{row[key]:,}">{short(row[key])}</td>')
    if timed:
        cells.append(f'<td class="number">{row["milliseconds"]:.2f}</td>')
    share = f"{row['share']:.1%}"
    cells.append(f'<td><span class="bar" style="--share: {share}"></span> {share}</td>')
    return f"<tr{kind}>{''.join(cells)}</tr>"
