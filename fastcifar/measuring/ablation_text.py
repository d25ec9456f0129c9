"""The tables of an ablation for the terminal, and remarks on how to read them."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Sequence

from fastcifar.measuring.ablation_results import NUM_WINDOWS, Ablation, machine_line, settings_line, summary_of
from fastcifar.measuring.cell import NUM_IMAGES
from fastcifar.measuring.grid import QUIET, costliest_first
from fastcifar.ui.display import format_seconds
from fastcifar.ui.tables import aligned


def text(ablation: Ablation) -> str:
    """The tables and the remarks, as one text."""
    parts = _aligned(cell_table(ablation), words=1)
    if (fastest := ablation.fastest) is not None:
        parts += ["", f"{fastest.name} ({fastest.rate:,.0f} images/s) with one thing changed:"]
        parts += _aligned(factor_table(ablation), words=2)
    if ablation.roofs:
        parts += ["", *_aligned(floor_table(ablation), words=1)]
    return "\n".join([*parts, "", *(_wrapped(line) for line in "\n".join(remarks(ablation)).splitlines())])


def _wrapped(line: str) -> str:
    """A remark's line for a terminal of 80 columns, broken at spaces only."""
    return textwrap.fill(line, 79, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _aligned(table: tuple[list[str], list[list[str]]], words: int) -> list[str]:
    """The lines of a table whose first `words` columns are text. They are never cut to the terminal's width."""
    header, rows = table
    return aligned(header, rows, range(words, len(header)))


def cell_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each cell."""
    epochs = next(entry.cell.config.epochs for entry in ablation.entries if entry.cell)
    header = ["cell", "images/s", "range", "speed-up", f"{epochs} epochs", "warm-up s", "GiB"]
    on_gpu = any(m.device_memory_gib is not None for entry in ablation.entries for m in entry.measurements)
    header += ["GPU GiB"] * on_gpu + ["neighbour"] * ablation.neighbour
    rows = []
    for entry in ablation.entries:
        s = summary_of(ablation, entry)
        if not entry.measurements:
            what = "failed" if entry.failed else "cannot run" if entry.problem else "-"
            rows.append([entry.name, what, *[""] * (len(header) - 2)])
            continue
        again = "" if s["compile_seconds_again"] is None else f" ({s['compile_seconds_again']:.1f})"
        row = [
            entry.name,
            f"{s['images_per_second']:,.0f}",
            f"{s['slowest_window']:,.0f}-{s['fastest_window']:,.0f}",
            "-" if s["speed_up"] is None else f"{s['speed_up']:.2f}x",
            format_seconds(s["run_seconds_computed"]),
            f"{s['compile_seconds']:.1f}{again}",
            f"{s['host_memory_gib']:.2f}",
        ]
        if on_gpu:
            row.append(f"{s['device_memory_gib']:.2f}")
        if ablation.neighbour:
            row.append(f"{s['beside_neighbour']:.0%}")
        rows.append(row)
    return header, rows


def floor_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each measured cell of the grid: how near its step is to the least time."""
    rows = []
    for entry in ablation.entries:
        s = summary_of(ablation, entry)
        if (floor := s["floor_seconds"]) is None or (step := s["step_seconds"]) is None:
            continue
        shares = [f"{floor / step:.0%}", f"{s['memory_bound_floor_seconds'] / floor:.0%}"]
        rows.append([entry.name, f"{step * 1e3:,.2f}", f"{floor * 1e3:,.2f}", *shares])
    return ["cell", "step ms", "floor ms", "of possible speed", "of floor by memory"], rows


def factor_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each factor, the costliest first. A star: it is not compared with the fastest cell."""
    rows = []
    for factor in costliest_first(ablation.factors):
        if not factor.measured:
            rows.append([factor.name, factor.change, "failed" if factor.without.failed else "not measured", "", ""])
            continue
        low, high = factor.without.spread
        star = " " if factor.of is ablation.fastest else "*"
        cells = [f"{factor.without.rate:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{-factor.cost:+.1%}{star}"]
        rows.append([factor.name, factor.change, *cells])
    return ["factor", "change", "images/s", "range", "difference "], rows


def remarks(ablation: Ablation) -> list[str]:
    """Lines that say how to read the tables, which cells could not run or failed, and what was left out."""
    windows = NUM_WINDOWS * ablation.repeats
    has_small = any(entry.cell.config.low_res_epochs for entry in ablation.entries if entry.cell)
    lines = [
        f"images/s: median and range of {windows} windows of {ablation.window_seconds:g} s, in "
        f"{ablation.repeats} process{'es' * (ablation.repeats > 1)} a cell; speed-up over the first row",
        f"epochs: computed from images/s, for {NUM_IMAGES:,} images an epoch, without validation; not run"
        f"{'; those on small images count as whole ones' * has_small}",
        "warm-up s: first batch and step, with compilation, from nothing (and from the cell's own cache), not in "
        "images/s; GiB: peak",
        f"{settings_line(ablation)}; {machine_line(ablation)}",
    ]
    if ablation.roofs:
        copies = max(roofs.memory for roofs in ablation.roofs.values())
        products = ", ".join(f"{p} {r.flops_per_second / 1e12:,.3g}" for p, r in sorted(ablation.roofs.items()))
        lines.append(
            f"floor ms: a step's bytes at the speed of copies (from memory {copies / 1e9:,.0f} GB/s) or its operations "
            f"at that of a large product ({products} TFLOP/s), layer by layer"
        )
    if ablation.neighbour:
        lines.append("neighbour: the share of images/s that is left beside one busy process")

    def named(names: Sequence[str]) -> str:
        return "all cells" if len(names) == len(ablation.all_entries) > 1 else "; ".join(names)

    if left_out := sum(entry.num_left_out for entry in ablation.all_entries):
        lines.append(f"{left_out} windows left out: other programs used more than {QUIET:.0%} of the cores")
    if disturbed := [entry.name for entry in ablation.all_entries if entry.disturbed]:
        lines.append(f"other programs used more than {QUIET:.0%} of the cores in all windows of {named(disturbed)}")
    stars = [factor for factor in ablation.factors if factor.of is not ablation.fastest]
    lines += [f"*{f.name}: of {f.of.name}'s, because engine = fused computes in channels_last only" for f in stars]
    quickest = max((e for e in ablation.entries if e.measurements), key=lambda e: e.rate, default=None)
    if ablation.fastest is not None and quickest is not ablation.fastest and quickest is not None:
        lines.append(f"{ablation.fastest.name} was the fastest of the first round; in the end it is {quickest.name}")
    said: dict[str, list[str]] = {}
    for entry in ablation.all_entries:
        notes = [note for measurement in entry.measurements for note in measurement.notes]
        # Each process meets another number of busy cores.
        for note in dict.fromkeys(re.sub(r"(?<=programs use )[\d.]+", "some", note) for note in notes):
            said.setdefault(note, []).append(entry.name)
        if entry.problem:
            problem = "\n".join(entry.problem.splitlines()[:3])
            said.setdefault(f"{'failed' if entry.failed else 'cannot run'}: {problem}", []).append(entry.name)
    lines += [f"{named(names)}: {text}" for text, names in said.items()]
    return lines


def stopped(ablation: Ablation) -> str:
    """A line for a stopped ablation: the signal that stopped it, and what was not measured."""
    attribution = ["the attribution"] if ablation.fastest is None else []
    missing = ", ".join([*ablation.missing, *attribution]) or "nothing"
    return f"stopped by {signal.Signals(ablation.signal_number).name}; missing: {missing}"
