"""What `flashvl trace` prints: table, words and page, pure functions of its JSON document.

This module does without torch, for the command line's help quotes `MEANINGS`.
"""

from __future__ import annotations

from html import escape
from typing import Any

from ...terminal import table

# What the columns mean; under the table, on the page and in --help.
MEANINGS = (
    "Parameters: of the weights read, each once; stages may share some.",
    "Bytes: the weights read in every call, and what goes in and comes out; not the key/value "
    "cache.",
    "Operations: of linear maps and attention, a multiply-add as 2, attention over all pairs of "
    "tokens even where it is causal.",
    "Embed: looking up the ids; putting the image tokens into their places is part of no stage.",
    "Decode: the steps after the first token, which prefill and head give; the last one may give "
    "the end of the answer.",
)
UNITS = (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))


def text(result: dict[str, Any]) -> str:
    """The table, the totals, and what they rest on."""
    timed = result["total"]["milliseconds"] is not None
    lines = [heads(result)]
    for row in result["rows"]:
        counts = [str(row["calls"])]
        counts += [short(row[key]) for key in ("parameters", "bytes", "operations")]
        counts += [f"{row['milliseconds']:.2f}"] if timed else []
        name = "  " * (row["depth"] - 1) + row["name"]
        shapes = [shapes_text(row["shapes_in"]), shapes_text(row["shapes_out"])]
        lines.append([name, *shapes, *counts, f"{row['share']:.1%}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        line[3:] = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:])]
    return "\n".join([table(lines), "", *summary(result), *MEANINGS])


def heads(result: dict[str, Any]) -> list[str]:
    """The heads of the columns; a run on shapes alone has no times."""
    times = [] if result["total"]["milliseconds"] is None else ["ms"]
    columns = ["stage", "shape in", "shape out", "calls", "parameters", "bytes", "operations"]
    return [*columns, *times, f"share of {result['share_of']}"]


def summary(result: dict[str, Any]) -> list[str]:
    """Lines: the run, its answer, its exact totals, a step of decoding, and the notes."""
    height, width = result["picture"]
    total = result["total"]
    timed = total["milliseconds"] is not None
    lines = [
        f"{result['model']} in {result['dtype']} on {result['device']}; picture: {width} x "
        f"{height} pixels; tiles: {result['tiles']}; image tokens: {result['image_tokens']:,}; "
        f"prompt tokens: {result['prompt_tokens']:,}; new tokens: {result['new_tokens']:,}"
    ]
    if result["answer"] is not None:
        lines.append(f"question: {result['question']}")
        lines.append(f"answer: {result['answer']}")
    lines.append(
        f"total: {total['parameters']:,} parameters, {total['bytes']:,} bytes, "
        f"{total['operations']:,} operations"
        + (f", {total['milliseconds']:,.2f} ms" if timed else "")
    )
    for row in result["rows"]:
        if row["name"] == "decode":
            calls = row["calls"]
            lines.append(
                f"a step of decode: {short(row['bytes'] / calls)} bytes, "
                f"{short(row['operations'] / calls)} operations"
                + (f", {row['milliseconds'] / calls:.2f} ms" if timed else "")
            )
    return lines + result["notes"]


def short(count: float) -> str:
    """1234567 -> "1.23 M": three digits or so, for reading."""
    for letter, size in UNITS:
        if count >= size:
            return f"{count / size:.2f} {letter}"
    return f"{count:.0f}"


def shapes_text(shapes: list[list[int]]) -> str:
    return ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes)


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.2rem 0.4rem; text-align: left; }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
.shape, .number, .share { white-space: nowrap; }
th { border-bottom: 2px solid; }
td { border-bottom: 1px solid #8884; }
.number { text-align: right; }
.stage td { font-weight: 600; }
.bar { background: linear-gradient(#4a7fd0, #4a7fd0) no-repeat left / var(--share) 100% #8882;
  display: inline-block; height: 0.8em; width: 5rem; }
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
            "<tr>" + "".join(map(page_head, heads(result))) + "</tr>",
            *(page_row(row, timed) for row in result["rows"]),
            "</table></div>",
            *(f"<p>{escape(line)}</p>" for line in MEANINGS),
            "</body>\n</html>\n",
        ]
    )


def page_head(head: str) -> str:
    of_numbers = head not in ("stage", "shape in", "shape out") and not head.startswith("share")
    kind = ' class="number"' if of_numbers else ""
    return f"<th{kind}>{escape(head)}</th>"


def page_row(row: dict[str, Any], timed: bool) -> str:
    kind = ' class="stage"' if row["depth"] == 1 else ""
    indent = f"padding-left: {0.4 + 1.2 * (row['depth'] - 1):.1f}rem"
    cells = [f'<td style="{indent}">{escape(row["name"])}</td>']
    for key in ("shapes_in", "shapes_out"):  # a line may break between shapes
        shapes = [f'<span class="shape">{shapes_text([shape])}</span>' for shape in row[key]]
        cells.append(f"<td>{', '.join(shapes)}</td>")
    cells.append(f'<td class="number">{row["calls"]:,}</td>')
    for key in ("parameters", "bytes", "operations"):
        cells.append(f'<td class="number" title="{row[key]:,}">{short(row[key])}</td>')
    if timed:
        cells.append(f'<td class="number">{row["milliseconds"]:.2f}</td>')
    share = f"{row['share']:.1%}"
    bar = f'<span class="bar" style="--share: {share}"></span>'
    cells.append(f'<td class="share">{bar} {share}</td>')
    return f"<tr{kind}>{''.join(cells)}</tr>"
