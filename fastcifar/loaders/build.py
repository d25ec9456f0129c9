"""From settings to a loader."""

from __future__ import annotations

from collections.abc import Callable

from fastcifar.data.dataset import Split
from fastcifar.loaders.host import HostLoader
from fastcifar.loaders.part import PartLoader
from fastcifar.loaders.protocol import Loader
from fastcifar.loaders.resident import Augmentation, ResidentLoader, augmentation_of
from fastcifar.target import Target


def check_available(target: Target, num_images: int) -> None:
    """Refuses a loader that cannot work on this machine. Is called before the run folder is made.

    Args:
        target: its config names the loader.
        num_images: the number of training images.

    Raises:
        UsageError: a package that the loader needs is missing or broken.
        LoaderError: this process may not open enough files, or TMPDIR is too long for the loader's worker processes.
    """
    if target.config.loader == "torchvision":
        from fastcifar.loaders.torchvision_import import import_torchvision
        from fastcifar.loaders.workers import check_processes, num_workers

        import_torchvision()
        check_processes(num_workers(target.config, num_images))
    elif target.config.loader == "dali":
        from fastcifar.loaders.dali import import_dali

        import_dali()


def build_loader(
    split: Split, target: Target, note: Callable[[str], None], *, augmentation: Augmentation | None = None
) -> Loader:
    """The loader that a settled config names, over the images of `split`.

    Args:
        split: the training images.
        target: its config names the loader. The batches are made for its device, in its dtype and memory format.
        note: is called with each remark for the user.
        augmentation: how the resident loader makes a batch; None means as the engine does by default.

    Returns:
        The loader; for one of several processes, a loader of its part of each batch.

    Raises:
        UsageError: a package that the loader needs is missing.
        DeviceMemoryError: the images do not fit the device.
    """
    loader = _whole_batches(split, target, note, augmentation)
    return PartLoader(loader, target.ranks) if target.ranks.size > 1 else loader


def _whole_batches(
    split: Split, target: Target, note: Callable[[str], None], augmentation: Augmentation | None
) -> Loader:
    config = target.config
    if config.loader == "torchvision":
        from fastcifar.loaders.torchvision import TorchvisionLoader  # imports torchvision, which is optional and slow

        return TorchvisionLoader(split, target)
    if config.loader == "dali":
        from fastcifar.loaders.dali import DaliLoader

        return DaliLoader(split, target)
    augmentation = augmentation or augmentation_of(config.engine, target.device)
    if config.images_on == "host":
        return HostLoader(split, target, note, augmentation=augmentation)
    return ResidentLoader(split, target, augmentation=augmentation)
