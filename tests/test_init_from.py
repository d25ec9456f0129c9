"""`init_from`: a run that starts from the weights of another one, with a new head where the classes differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split, weights, write_tiny

from fastcifar.checkpoint import load_model, starting_weights
from fastcifar.errors import UsageError
from fastcifar.run.folder import RunFolder
from fastcifar.run.schema import Images
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.trainer import train

pytestmark = pytest.mark.usefixtures("no_curves")

LR = 1e-30  # so small that no weight moves


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("init") / "tiny.npz")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    return train(tiny_config(data, epochs=1), data.parent / "run", [], progress=False)


def images(*class_names: str) -> Images:
    return Images(name="tiny", size=32, class_names=list(class_names), superclass_names=[], superclass_of=[])


def test_a_run_starts_from_the_weights_of_another(run: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, epochs=1, init_from=str(run), lr=LR, seed=7, ema_decay=0.9)
    new = train(config, tmp_path / "new", [], progress=False)
    assert RunFolder.open(new).config.init_from == str(run)
    before, after = weights(run), weights(new)
    for name, parameter in load_model(RunFolder.open(run)).named_parameters():
        assert torch.equal(before[f"model.{name}"], parameter)
        assert torch.equal(after[f"model.{name}"], parameter) and torch.equal(after[f"ema.{name}"], parameter), name


def test_other_classes_get_a_new_head(run: Path, data: Path) -> None:
    config = tiny_config(data, init_from=str(run))
    notes: list[str] = []
    same = starting_weights(config, images("class 0", "class 1", "class 2", "class 3"), notes.append)
    other = starting_weights(config, images("a", "b", "c", "d"), notes.append)
    assert same.keys() - other.keys() == {"head.weight", "head.bias"} and len(notes) == 2
    session = Session(Target(config), 9, other)
    fresh = Session(Target(config), 9)
    assert torch.equal(session.engine.model.stem.weight, same["stem.weight"])  # type: ignore[union-attr,arg-type]
    assert torch.equal(session.engine.model.head.weight, fresh.engine.model.head.weight)  # type: ignore[union-attr,arg-type]


def test_a_run_of_other_images_has_their_classes(run: Path, tmp_path: Path) -> None:
    """From the images to the checkpoint: two classes, whose head is new and whose other weights are the run's."""
    train_split, test_split = tiny_split(60), tiny_split(20, seed=1)
    path = tmp_path / "two.npz"
    arrays = {"train_images": train_split.images, "train_labels": train_split.labels % 2}
    np.savez(path, **arrays, test_images=test_split.images, test_labels=test_split.labels % 2)
    new = train(tiny_config(path, epochs=1, init_from=str(run), lr=LR), tmp_path / "new", [], progress=False)
    before, after = weights(run), weights(new)
    assert len(after["model.head.bias"]) == 2 and torch.equal(after["model.stem.weight"], before["model.stem.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"width_mult": 0.25}, "allowed: --width-mult 0.125"), ({"init_from": "nowhere"}, "there is no run at .*nowhere")],
)
def test_what_cannot_be_taken_over_is_refused(
    run: Path, data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = tiny_config(data, **{"init_from": str(run), **settings})
    with pytest.raises(UsageError, match=message):
        train(config, tmp_path / "new", [], progress=False)
    assert not (tmp_path / "new").exists()
