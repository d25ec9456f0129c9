"""Images as people have them: other sizes, grey ones, MedMNIST's and Keras' arrays, .npy files; and data convert."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import tiny_config, write_tiny

import fastcifar as fc
from fastcifar.api import _as_command
from fastcifar.checkpoint import load_model
from fastcifar.cli import main as cli
from fastcifar.config import Config, has_default_normalization
from fastcifar.data import sources
from fastcifar.data.dataset import channel_statistics
from fastcifar.errors import DataError, UsageError
from fastcifar.evaluation import evaluate_run
from fastcifar.layers import resolve
from fastcifar.prediction import predict
from fastcifar.ranks import Ranks
from fastcifar.run.folder import RunFolder
from fastcifar.studies.plan import _differences
from fastcifar.trainer import splits_of, train

pytestmark = pytest.mark.usefixtures("no_curves")

Arrays = dict[str, NDArray[Any]]


def arrays(size: int, channels: int = 3, count: int = 60, classes: int = 3) -> Arrays:
    """Images whose brightness shows their class, as [N, S, S, 3], or [N, S, S] for one channel."""
    rng = np.random.default_rng(size)
    found: Arrays = {}
    for split, number in (("train", count), ("test", 20)):
        labels = np.arange(number) % classes
        shape = (number, size, size, 3)[: 3 if channels == 1 else 4]
        level = (labels * 90).reshape(-1, *[1] * (len(shape) - 1))
        found[f"{split}_images"] = np.clip(level + rng.normal(30, 20, shape), 0, 255).astype(np.uint8)
        found[f"{split}_labels"] = labels
    return found


def medmnist(path: Path, size: int = 28, channels: int = 1) -> Path:
    """An .npz as MedMNIST publishes it: labels [N, 1], a validation split, 28 x 28 pixels."""
    found = arrays(size, channels)
    for split in ("train", "test"):
        found[f"{split}_labels"] = found[f"{split}_labels"].astype(np.uint8)[:, None]
    np.savez(path, **found, val_images=found["test_images"], val_labels=found["test_labels"])
    return path


def trained(data: Path, out: Path, **settings: Any) -> RunFolder:
    config = tiny_config(data, **{"epochs": 1, "val_size": 12, "batch_size": 16, **settings})
    return RunFolder.open(train(config, out, []))


def test_medmnist_as_it_is_published(tmp_path: Path, capsys: Any) -> None:
    """From the file to the accuracy: 28 x 28 pixels, labels [N, 1], normalised by its own statistics."""
    data = medmnist(tmp_path / "pneumoniamnist.npz")
    run = trained(data, tmp_path / "run", epochs=2)
    dataset = sources.load(str(data))
    assert dataset.train.images.shape == (60, 28, 28, 3) and dataset.num_classes == 3 and dataset.train.is_grey()
    assert "val_images, of which nothing is used" in capsys.readouterr().err
    assert (run.config.mean, run.config.std) == channel_statistics(dataset.train_val(12, 0)[0])
    summary = run.summary()
    assert summary is not None and evaluate_run(run.path)["accuracy"] == summary["test_accuracy"]
    assert run.images is not None and run.images.size == 28


@pytest.mark.parametrize("engine", ["eager", "fused"])
@pytest.mark.parametrize("size", [8, 28, 33, 96])
def test_every_size_trains_as_it_is(tmp_path: Path, size: int, engine: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays(size))
    run = trained(tmp_path / "own.npz", tmp_path / "run", engine=engine, val_size=28)
    assert run.records[0]["train_loss"] < 5 and run.images is not None and run.images.size == size


@pytest.mark.parametrize(
    ("size", "settings", "is_taken"),
    [
        (16, {}, False),
        (17, {}, True),
        (16, {"val_size": 10, "lr": 1e-3}, True),  # 2 images in the last batch
        (16, {"engine": "fused"}, True),
        (16, {"batch_size": 1, "val_size": 12}, False),
        (20, {"low_res_epochs": 1, "low_res": 16, "epochs": 2}, False),
    ],
)
def test_one_image_alone_whose_last_map_has_one_pixel(
    tmp_path: Path, size: int, settings: dict[str, Any], is_taken: bool
) -> None:
    """PyTorch's batch norm cannot train on it. Here the last of four batches has one of 49 images."""
    np.savez(tmp_path / "own.npz", **arrays(size))
    settings = {"val_size": 11, **settings}
    if is_taken:
        trained(tmp_path / "own.npz", tmp_path / "run", **settings)
        return
    with pytest.raises(UsageError, match=r"^batch_size = .* cannot train on a single image of \d+x\d+ pixels"):
        trained(tmp_path / "own.npz", tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "sync"), [(1, False), (2, False), (2, True)])
def test_one_image_for_each_of_several_processes(tmp_path: Path, size: int, sync: bool) -> None:
    np.savez(tmp_path / "own.npz", **arrays(12))
    dataset, ranks = sources.load(str(tmp_path / "own.npz")), Ranks(0, size)
    config = tiny_config(batch_size=16, val_size=10, sync_batch_norm=sync)  # 2 images in the last batch
    if sync or size == 1:
        assert len(splits_of(dataset, config, ranks)[0]) == 50
        return
    with pytest.raises(UsageError, match="for 2 processes, and engine = 'eager' cannot train on a single image"):
        splits_of(dataset, config, ranks)


def test_both_engines_agree_on_one_channel(tmp_path: Path) -> None:
    data = medmnist(tmp_path / "grey.npz", size=12)
    runs = [trained(data, tmp_path / engine, engine=engine, channels=1, lr=1e-30) for engine in ("eager", "fused")]
    eager, fused = (run.records[0] for run in runs)
    for name in ("train_loss", "val_loss"):
        assert eager[name] == pytest.approx(fused[name], rel=1e-4), name


def test_grey_images_have_three_channels_or_one(tmp_path: Path) -> None:
    data = medmnist(tmp_path / "grey.npz", size=12)
    one, three = (trained(data, tmp_path / str(c), channels=c) for c in (1, 3))
    assert load_model(one).stem.weight.shape[1] == 1 and load_model(three).stem.weight.shape[1] == 3
    with torch.no_grad():
        model = load_model(one)
        images = torch.randn(2, 1, 12, 12)
        assert torch.equal(model(images), model(images.expand(2, 3, 12, 12)))
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / "picture.png")
    assert predict(one, [tmp_path / "picture.png"])[0].resized == "centre 40x40 of 40x50 to 12x12"
    with pytest.raises(ValueError, match="channels = 2"):
        Config(channels=2)


def test_colours_are_not_lost(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays(12))
    with pytest.raises(UsageError, match="has images with colours; allowed: 3"):
        trained(tmp_path / "own.npz", tmp_path / "run", channels=1)
    assert not (tmp_path / "run").exists()


def test_an_export_of_grey_images_takes_one_channel(tmp_path: Path) -> None:
    run = trained(medmnist(tmp_path / "grey.npz", size=12), tmp_path / "run", channels=1)
    out = tmp_path / "out"
    assert cli.main(["export", str(run.path), "--format", "pt2", "--out", str(out)]) == 0
    facts = json.loads((out / "config.json").read_text())
    assert (facts["channels"], facts["image_size"], len(facts["mean"])) == (1, 12, 1)
    module = torch.export.load(str(out / "model.pt2")).module()
    assert module(torch.zeros(5, 1, 12, 12)).shape == (5, 3)


@pytest.mark.parametrize("layout", ["npy", "keras", "keras npy", "one channel"])
def test_the_same_images_in_every_layout(tmp_path: Path, layout: str) -> None:
    found = arrays(20, channels=1)
    np.savez(tmp_path / "plain.npz", **found)
    there = tmp_path / "there"
    there.mkdir()
    names = {
        f"{s}_{k}": f"{'x' if k == 'images' else 'y'}_{s}" for s in ("train", "test") for k in ("images", "labels")
    }
    if layout == "one channel":
        found = {name: array[..., None] if name.endswith("images") else array for name, array in found.items()}
    if layout.startswith("keras"):
        found = {names[name]: array for name, array in found.items()}
    if layout.endswith("npy"):
        for name, array in found.items():
            np.save(there / f"{name}.npy", array)
    else:
        np.savez(there / "own.npz", **found)
    assert sources.load(str(there)).digest == sources.load(str(tmp_path / "plain.npz")).digest


def test_a_changed_npy_file_is_read_again(tmp_path: Path) -> None:
    for name, array in arrays(20).items():
        np.save(tmp_path / f"{name}.npy", array)
    before = sources.load(str(tmp_path)).digest
    np.save(tmp_path / "train_images.npy", arrays(20)["train_images"][::-1])
    assert sources.load(str(tmp_path)).digest != before


def test_mean_and_std_that_are_set_are_kept(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "own.npz", **arrays(12))
    run = trained(tmp_path / "own.npz", tmp_path / "run", mean=(0.5, 0.5, 0.5))
    assert run.config.mean == (0.5, 0.5, 0.5) and "mean and std are those of" not in capsys.readouterr().err
    own = trained(tmp_path / "own.npz", tmp_path / "own")
    assert "mean and std are those of the 48 training images" in capsys.readouterr().err
    wanted = tiny_config(tmp_path / "own.npz", epochs=1, val_size=12, batch_size=16)
    assert _differences(own.config, wanted) == [], "a study goes on with its runs"
    assert _differences(own.config, wanted.model_copy(update={"mean": (0.5, 0.5, 0.5)})) != []


def test_the_default_mean_is_kept_where_it_is_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays(12))
    run = trained(tmp_path / "own.npz", tmp_path / "run", mean=Config().mean)
    assert (run.config.mean, run.config.std) == (Config().mean, Config().std)


def test_whether_a_mean_is_set_is_known_in_every_interface() -> None:
    text = "0.5071,0.4865,0.4409"
    assert has_default_normalization(resolve("quick", None, [])) and has_default_normalization(fc.preset("quick"))
    assert not has_default_normalization(resolve("quick", None, [("mean", text)]))
    config = fc.preset("quick", mean=Config().mean)
    assert not has_default_normalization(config)
    assert _as_command(config, None) == ["fastcifar", "train", "--preset", "quick", "--mean", text]


def test_colour_images_of_cifars_size_are_normalised_as_cifar(tmp_path: Path, capsys: Any) -> None:
    """A part of CIFAR in another folder is; the line says what the images' own statistics are."""
    run = trained(write_tiny(tmp_path / "own.npz"), tmp_path / "run", val_size=24)
    assert run.config.mean == Config().mean and run.config.std == Config().std
    assert "mean and std are CIFAR's; those of these images are --mean 0.49" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_other_images_with_the_name_of_cifar_are_normalised_by_their_own(tmp_path: Path, name: str) -> None:
    run = trained(medmnist(tmp_path / f"{name}.npz"), tmp_path / "run")
    assert run.config.mean != Config().mean and run.config.std != Config().std
    assert run.images is not None and run.images.name == f"own {name}"


def test_the_procedural_images_are_normalised_as_cifar(tmp_path: Path) -> None:
    run = trained(Path("procedural"), tmp_path / "run", val_size=5900)
    assert run.config.mean == Config().mean


@pytest.mark.parametrize("shape", [(7, 7), (97, 97), (28, 30)])
def test_what_is_not_taken_names_the_command_that_converts_it(tmp_path: Path, shape: Any, capsys: Any) -> None:
    """The command of the message is run as it stands, and then the images are taken."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "folder"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    own = {f"{s}_images": rng.integers(0, 256, (6, *shape), dtype=np.uint8) for s in ("train", "test")}
    np.savez(tmp_path / "own.npz", **own, train_labels=np.arange(6) % 2, test_labels=np.arange(6) % 2)
    for source in (folder, tmp_path / "own.npz"):
        with pytest.raises(DataError) as error:
            sources.load(str(source))
        command = str(error.value).partition("`fastcifar ")[2].partition("`")[0]
        out = tmp_path / f"{source.name}-32.npz"
        words = shlex.split(command.replace("OUT.npz", shlex.quote(str(out))))
        assert cli.main(words) == 0
        assert "\neach is the centre square of its image, scaled if it had another size\n" in capsys.readouterr().out
        assert sources.load(str(out)).train.images.shape == (6, 32, 32, 3)
        assert cli.main(words) == 2, "nothing is overwritten"
    assert sources.load(str(tmp_path / "folder-32.npz")).class_names == ("cat", "dog")


def test_a_conversion_says_what_it_leaves_out(tmp_path: Path, capsys: Any) -> None:
    data, out = medmnist(tmp_path / "grey.npz"), tmp_path / "out.npz"
    assert cli.main(["data", "convert", str(data), str(out), "--size", "32"]) == 0
    assert "also holds val_images, of which nothing is used" in capsys.readouterr().err


def test_a_conversion_downloads_nothing(tmp_path: Path, capsys: Any) -> None:
    words = ["data", "convert", "own.npz", str(tmp_path / "out.npz"), "--size", "32", "--mirror", "https://host/"]
    assert cli.main(words) == 2
    assert "data convert: --mirror: only data info and data get take it" in capsys.readouterr().err
