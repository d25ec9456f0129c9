"""Data sets for Python: the same images, in the same order, as a run with the same `--data` has.

    import fastcifar as fc

    cifar = fc.datasets.load("cifar100")
    cifar.train.images.shape, cifar.class_names[cifar.train.labels[0]]

Nothing here imports torch.
"""

from fastcifar.data.dataset import Dataset, Split, SplitInfo, info
from fastcifar.data.sources import load

__all__ = ["Dataset", "Split", "SplitInfo", "info", "load"]
