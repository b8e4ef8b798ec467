"""The table and the words of `flashvl trace`: pure functions of its JSON document."""

from __future__ import annotations

from typing import Any

from .verify import table

# What the columns mean; under the table, on the page and in --help.
MEANINGS = (
    "Parameters: of the weights read, each once; stages may share some.",
    "Bytes: the weights read in every call, and what goes in and comes out; not the key/value "
    "cache.",
    "Operations: of linear maps and attention, a multiply-add as 2, attention over all pairs of "
    "tokens even where it is causal.",
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
    lines = [
        (*line[:3], *(cell.rjust(width) for cell, width in zip(line[3:], widths[3:])))
        for line in lines
    ]
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
