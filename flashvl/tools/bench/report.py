"""The report of `flashvl bench`: pure functions of its JSON document, one for each part of it."""

from __future__ import annotations

from typing import Any

from ...terminal import table
from ..trace.report import short

# The stages before an answer's first token is known.
FIRST_WORD = ("preprocess", "vision", "compressor", "prefill")
# An H100 SXM, a second: dense operations in bfloat16, bytes of its memory. Source: data sheet.
H100_OPERATIONS, H100_BYTES = 989e12, 3.35e12
NOTE = (
    "Bytes and operations by count; peak: of memory so far, above the process without weights, "
    "each stage run once."
)


def machine(result: dict[str, Any]) -> str:
    about, sizes = result["machine"], result["sizes"]
    lines = [f"{about['name']}, torch {about['torch']}"]
    if "threads" in about:
        lines[0] += f", {about['threads']} threads, {about['instructions']}"
    lines.append(f"bfloat16 arithmetic: {'yes' if about['bfloat16_arithmetic'] else 'no'}")
    lines.append(
        f"{result['model']} on {about['device']}; tiles: {sizes['tiles']}; prompt tokens: "
        f"{sizes['prompt']}; new tokens: {sizes['new']}"
    )
    return "\n".join(lines)


def ceilings(result: dict[str, Any]) -> str:
    found = result["ceilings"]
    one_row, products = found["one_row"], found["products"]
    rows = [
        ("ceiling", "float32", "bfloat16"),
        ("reading memory", f"{short(found['read'])}B/s", ""),
        ("products of one row", *(f"{short(rate)}B/s" for rate in one_row.values())),
    ]
    for part, rates in products.items():
        rows.append((f"products of {part}", *(f"{short(rate)}FLOP/s" for rate in rates.values())))
    return table(rows)


def stages(result: dict[str, Any]) -> str:
    rows = [("stage", "median", "min to max", "bytes", "operations", "of the ceiling", "peak")]
    for name, entry in result["stages"].items():
        rows.append(
            (
                "decode, a token" if name == "decode" else name,
                duration(entry["seconds"]),
                f"{duration(entry['seconds_min'])} to {duration(entry['seconds_max'])}",
                f"{short(entry['bytes'])}B" if entry["bytes"] else "-",
                short(entry["operations"]) if entry["operations"] else "-",
                share(entry),
                f"{short(entry['peak_bytes'])}B",
            )
        )
    found = result["stages"]
    first = sum(found[name]["seconds"] for name in FIRST_WORD)
    speed = 1 / found["decode"]["seconds"]
    said = f"from the picture to the first word: {duration(first)}; then {speed:.2f} tokens/s"
    return f"{table(rows)}\n{NOTE}\n{said}\n{estimate(found)}"


def estimate(found: dict[str, Any]) -> str:
    """What the counts would take on a card that was not at hand, if it reached its data sheet."""
    seconds = {
        name: max(entry["operations"] / H100_OPERATIONS, entry["bytes"] / H100_BYTES)
        for name, entry in found.items()
    }
    said = ", ".join(f"{name} {duration(seconds[name])}" for name in ("vision", "prefill"))
    return (
        f"by count alone, not measured, an H100 needs at least: {said}, a token "
        f"{duration(seconds['decode'])}"
    )


def share(entry: dict[str, Any]) -> str:
    """Of a stage: how near it comes to the ceiling that bounds it."""
    if "share_of_products" in entry:
        rate = f"{short(entry['operations_per_second'])}FLOP/s"
        return f"{rate}, {entry['share_of_products']:.0%} of products"
    if "share_of_read" in entry:
        rate = f"{short(entry['bytes_per_second'])}B/s"
        read, one_row = entry["share_of_read"], entry["share_of_one_row"]
        return f"{rate}, {read:.0%} of reading, {one_row:.0%} of one-row products"
    return "-"


def memory(result: dict[str, Any]) -> str:
    return f"peak memory: {peak(result['memory'])}"


def peak(entry: dict[str, Any]) -> str:
    return (
        f"{short(entry['peak_bytes'])}B, {entry['ratio']:.2f} x the checkpoint "
        f"({short(entry['checkpoint_bytes'])}B) and the cache ({short(entry['cache_bytes'])}B)"
    )


def peer(result: dict[str, Any]) -> str:
    found = result["peer"]
    rows = [("stage", "transformers in", "flashvl", "transformers", "flashvl takes")]
    for stage in ("vision", "prefill", "decode"):
        for dtype, sides in found[stage].items():
            if sides is None:
                rows.append((stage, dtype, "", "not run: over 20 minutes", ""))
                continue
            ours, theirs = sides["flashvl"], sides[f"transformers {dtype}"]
            rows.append((stage, dtype, spread(ours), spread(theirs), ratio(stage, sides)))
    theirs = peak(found["memory"])
    return f"{table(rows)}\npeak memory of transformers in float32: {theirs}"


def quantized(result: dict[str, Any]) -> str:
    found = result["quantized"]
    form, loss, layers = found["form"], found["loss"], found["loss"]["layers"]
    rows = [("stage", form, "as stored", f"{form} takes")]
    for stage in ("prefill", "decode"):
        sides = found[stage]
        rows.append((stage, spread(sides[form]), spread(sides["flashvl"]), ratio(stage, sides)))
    differs = f"{loss['mean_difference']:.3g} in the mean, {loss['largest_difference']:.3g} at most"
    lines = [
        table(rows),
        f"loss over {loss['tokens']} tokens: a logit differs by {differs}, which is "
        f"{loss['relative']:.2%} of the largest logit;",
        f"divergence {loss['divergence']:.3g} nats a token; {loss['equal_tokens']:.1%} of the "
        "greedy tokens are equal",
    ]
    if layers:
        lines.append(
            f"error of the layers: {layers[0]:.2%} in the first, {layers[-1]:.2%} in the last"
        )
    return "\n".join(lines)


def batch(result: dict[str, Any]) -> str:
    found = result["batch"]
    rows = [("way", "all answers", "tokens/s in all")]
    for way in ("together", "one by one"):
        speed = found["tokens"] / found[way]["seconds"]
        rows.append((way, spread(found[way]), f"{speed:.2f}"))
    return (
        f"{table(rows)}\n{found['rows']} pictures and questions, {found['tokens']} new tokens: "
        f"together {1 / found['ratio']:.2f} x as fast"
    )


def compiled(result: dict[str, Any]) -> str:
    rows = [("stage", "compiled", "eager", "compiled takes", "compiling and the first run")]
    for stage, sides in result["compiled"].items():
        rows.append(
            (
                stage,
                spread(sides["compiled"]),
                spread(sides["flashvl"]),
                ratio(stage, sides),
                duration(sides["seconds_to_compile"]),
            )
        )
    return table(rows)


def ratio(stage: str, sides: dict[str, Any]) -> str:
    """Of times, the first side's to the other's; of decode as tokens a second."""
    if stage == "decode":
        return f"{1 / sides['ratio']:.2f} x the tokens/s"
    return f"{sides['ratio']:.2f} x the time"


def spread(entry: dict[str, Any]) -> str:
    """The median, and between what the times lie."""
    fastest, slowest = duration(entry["seconds_min"]), duration(entry["seconds_max"])
    return f"{duration(entry['seconds'])} ({fastest} to {slowest})"


def duration(seconds: float) -> str:
    """Three digits, in seconds or milliseconds."""
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1000:.3g} ms"
