"""predictions.npz: what a run's model says of each test image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar import files
from fastcifar.errors import CheckpointError
from fastcifar.run.names import ADVICE, PREDICTIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_predictions(folder: Path, predictions: Mapping[str, NDArray[Any]]) -> None:
    """Writes predictions.npz in one step: for every test image, in the data set's canonical order (arrays [N]),
    `labels` and `predicted` (int16 classes), `confidence` (float32, the probability of the predicted class) and
    `label_probability` (float32, that of the label).
    """
    import numpy as np

    content = io.BytesIO()
    np.savez_compressed(content, **dict(predictions))  # type: ignore[arg-type]
    files.replace(folder / PREDICTIONS, content.getvalue(), ADVICE)


def read_predictions(folder: Path) -> dict[str, NDArray[Any]] | None:
    """What `write_predictions` wrote; None while there is nothing.

    Raises:
        CheckpointError: predictions.npz is damaged.
    """
    import numpy as np

    path = folder / PREDICTIONS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as problem:
        raise CheckpointError(f"{path} is damaged: {problem}. Delete it: it is made again when needed.") from problem
