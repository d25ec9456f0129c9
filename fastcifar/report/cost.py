"""What each run cost: time, speed and energy."""

from __future__ import annotations

from collections.abc import Mapping

from fastcifar.report.document import NOTHING, Block, Paragraph, Table
from fastcifar.report.markup import plain
from fastcifar.report.results import Results, Run
from fastcifar.ui.display import format_seconds


def cost_blocks(results: Results) -> list[Block]:
    rows, data = [], []
    for trial in results.trials:
        for run in trial.runs:
            seconds, process, warm = (run.value(key) for key in ("train_seconds", "process_seconds", "compile_seconds"))
            rate, joules = run.images_per_second, run.value("energy_joules")
            rows.append(
                [
                    f"{plain(trial.label)}, seed {run.config.seed}",
                    _clock(seconds),
                    _clock(process),
                    NOTHING if rate is None else f"{rate:,.0f}",
                    _energy(run, joules),
                    plain(device_of(run)),
                    f"{run.config.engine}, {run.config.precision}",
                    str(run.concurrent),
                ]
            )
            record: dict[str, object] = {"trial": trial.label, "seed": run.config.seed, "train_seconds": seconds}
            record |= {"compile_seconds": warm, "process_seconds": process, "images_per_second": rate}
            record |= {"energy_joules": joules, "energy_seconds": run.value("energy_seconds")}
            record |= {"device": device_of(run), "engine": run.config.engine, "precision": run.config.precision}
            data.append(record | {"runs_at_once": run.concurrent})
    columns = ["run", "training", "whole process", "images/s", "energy", "device", "engine", "at once"]
    caption = (
        "**Cost of each run**: the training clock (without evaluation and compilation), the process from its start, "
        "images a second of training. At once: how many runs of a study or of one process shared the machine (what "
        "else ran on it is not recorded)"
    )
    blocks: list[Block] = [Table("cost", caption, columns, rows, data)]
    if any(run.concurrent > 1 for run in results.runs):
        text = (
            "Runs that shared the machine are slower than alone: their times are those of that moment, and the energy "
            "is that of the whole device."
        )
        blocks.append(Paragraph(text))
    if not any(run.value("energy_joules") is not None for run in results.runs):
        text = "Energy was not measured: it is read from an NVIDIA GPU while it trains, and no run here was on one."
        if any(str(run.environment.get("device", "")).startswith("cuda") for run in results.runs):
            text = (
                "Energy was not measured: the GPU or its driver does not tell it, or the runs are older than the meter."
            )
        blocks.append(Paragraph(text))
    return blocks


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _energy(run: Run, joules: float | None) -> str:
    if joules is None:
        return "not measured"
    text = f"{joules / 1000:,.1f} kJ ({joules / 3600:,.1f} Wh)"
    covered, trained = run.value("energy_seconds"), run.value("train_seconds")
    if covered and trained and covered < 0.98 * trained:
        text += f" over {100 * covered / trained:.0f} % of training"
    return text + (" (from samples of the power)" if run.summary.get("energy_source") == "power samples" else "")


def device_of(run: Run) -> str:
    """The GPU's name, or the processor's with its threads."""
    gpu, cpu = run.environment.get("gpu"), run.environment.get("cpu")
    if isinstance(gpu, Mapping) and gpu.get("name"):
        return str(gpu["name"])
    model = str(cpu.get("model")) if isinstance(cpu, Mapping) else "CPU"
    threads = run.environment.get("threads")
    count = threads.get("torch") if isinstance(threads, Mapping) else None
    return model.replace("(R)", "").replace("(TM)", "") + (f", {count} threads" if count else "")
