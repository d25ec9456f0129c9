"""How each run was made: what was typed, with which code and on which machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from fastcifar.report.cost import device_of
from fastcifar.report.document import NOTHING, Block, Paragraph, Table
from fastcifar.report.markup import code, plain
from fastcifar.report.results import Results


def reproduce_blocks(results: Results, command: str) -> list[Block]:
    rows, data = [], []
    for trial in results.trials:
        for run in trial.runs:
            facts = run.environment
            typed = facts.get("command")
            words_typed = [shortened_word(str(word)) for word in (typed if isinstance(typed, list) else [])]
            source = _commit(facts.get("source"))
            versions = f"Python {facts.get('python')}, torch {facts.get('torch')}, numpy {facts.get('numpy')}"
            rows.append(
                [
                    f"{plain(trial.label)}, seed {run.config.seed}",
                    code(shlex.join(words_typed)),
                    plain(f"fastcifar {facts.get('fastcifar')}, {source}; {versions}"),
                    plain(f"{device_of(run)}; engine {run.config.engine}, {run.config.precision}"),
                    plain(str(facts.get("date", NOTHING))[:16].replace("T", " ")),
                ]
            )
            record: dict[str, object] = {"trial": trial.label, "seed": run.config.seed}
            record |= {"command": shlex.join(words_typed), "fastcifar": facts.get("fastcifar"), "commit": source}
            record |= {key: facts.get(key) for key in ("python", "torch", "numpy", "platform", "date")}
            record |= {"device": device_of(run), "engine": run.config.engine, "precision": run.config.precision}
            data.append(record | {"dataset_digest": run.digest, "run_id": facts.get("run_id"), "folder": run.path.name})
    columns = ["run", "command", "commit and versions", "computed by", "started (UTC)"]
    digests = sorted({run.digest for run in results.runs})
    caption = "**Each run**: what was typed, and on what. Every mean above is over the runs of its trial"
    return [
        Paragraph(
            "The resolved settings of a run, all of them, are the `config.toml` of its run folder; `fastcifar train "
            "--config FOLDER/config.toml --out NEW` trains it again. `environment.json` beside it has the versions, "
            "device and environment variables. Folders in front of a file name are written as `.../`. The "
            f"content of the images has the digest {' or '.join(f'`{digest[:16]}`' for digest in digests)} (`fastcifar "
            "data info` prints it)."
        ),
        Table("runs", caption, columns, rows, data),
        Paragraph(f"This page: {code(command)}."),
    ]


def _commit(source: object) -> str:
    if not isinstance(source, Mapping) or not source.get("commit"):
        return "commit not known (an installed package)"
    return f"commit {str(source['commit'])[:12]}" + (", with changes not committed" if source.get("dirty") else "")


def shortened(text: str) -> str:
    """`text` with .../ for the folders in front of a file's name, which mean nothing on another machine."""
    return re.sub(r"(?<![\w.:/-])(?:~|\.\.)?/(?:[^\s/:;,'\"]+/)+(?=[^\s/])", ".../", text)


def shortened_word(word: str) -> str:
    """The same for a word of a command, where the names of folders may have any characters."""
    return re.sub(r"^(--[\w-]+=)?(?:~|\.\.)?/(?:[^/]+/)+(?=[^/])", r"\1.../", word)
