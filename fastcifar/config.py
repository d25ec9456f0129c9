"""Every setting of a run, with its type, bounds, default and group, and the rules between settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GROUPS = (
    "data",
    "augmentation",
    "model",
    "optimisation",
    "loader",
    "engine",
    "evaluation and checkpoints",
)
"""The groups of settings, in the order in which they are listed."""

_NO_NUL = r"\A[^\x00]+\z"  # also refuses lone surrogates, which no UTF-8 file can hold


def _setting(
    group: str,
    default: object,
    description: str,
    *,
    changes_result: bool = True,
    resumable: bool = False,
    allowed: str = "",
    values: str = "",
    off: str = "",
    **bounds: Any,
) -> Any:
    """A field of `Config`.

    Args:
        group: one of `GROUPS`; empty for the name of the preset.
        default: the value where no preset, file or command line states one.
        description: what it is, in a line of the help.
        changes_result: whether another value makes another experiment. Settings that only decide from where the images
            come, what computes, and when a run is evaluated and saved do not; neither does the seed.
        resumable: whether a run that goes on may have another value: where it computes and reads, never what.
        allowed: what may be given, where the type and the bounds cannot say it.
        values: words to suggest to somebody who mistypes a text, separated by spaces.
        off: the value that switches off what the setting does, as typed.
        bounds: of the number or the text, as pydantic names them.
    """
    extra: dict[str, Any] = {"group": group, "changes_result": changes_result, "resumable": resumable}
    extra |= {"allowed": allowed, "values": values, "off": off}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


_Mean = Annotated[float, Field(ge=0, le=1)]
_Std = Annotated[float, Field(gt=0, le=1)]


class Config(BaseModel):
    """The resolved settings of one run. Immutable; the defaults are the trial `constant` of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    preset: str = _setting(
        "",
        "custom",
        "the preset that the settings derive from; names the folder under runs/",
        pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z",
        allowed="a name of letters, digits, dots, dashes and underscores, at most 64",
        changes_result=False,
    )
    data: str = _setting(
        "data",
        "cifar100",
        "the images to learn: a data set's name (procedural is generated, nothing to download), or the path of an "
        "archive, of a folder of pickles, binaries or images, of an .npz, or of Parquet or Arrow files",
        pattern=_NO_NUL,
        allowed="cifar100, cifar10, procedural or a path",
        changes_result=False,
        resumable=True,
    )
    mirror: str = _setting(
        "data",
        "",
        "URL to download from in place of the data set's known mirrors",
        pattern=r"\A((https?|file)://[^\s\x00]+)?\z",
        allowed="a URL (http://, https:// or file://), or nothing",
        changes_result=False,
        resumable=True,
    )
    val_size: int = _setting("data", 10000, "training images held out for validation; 0 = train on all", ge=0, off="0")
    split_seed: int = _setting("data", 0, "seed of the split into training and validation", ge=0, le=2**32 - 1)
    channels: int = _setting(
        "data",
        3,
        "channels that the network sees. Grey images are given three equal channels; with 1 they keep one",
        ge=1,
        le=3,
        allowed="3, or 1 for grey images",
    )
    mean: tuple[_Mean, _Mean, _Mean] = _setting(
        "data",
        (0.5071, 0.4865, 0.4409),
        "subtracted from the channels (images scaled to 0..1); where neither it nor std is set, images that are grey "
        "or of another size than CIFAR's are normalised with their own",
        strict=False,
        allowed="three numbers from 0 to 1: red, green, blue",
    )
    std: tuple[_Std, _Std, _Std] = _setting(
        "data",
        (0.2009, 0.1984, 0.2023),
        "divides the channels; the report's value is the mean of the images' own deviations, the data set's is "
        "0.2673,0.2564,0.2762",
        strict=False,
        allowed="three numbers above 0, at most 1: red, green, blue",
    )

    crop_padding: int = _setting(
        "augmentation", 4, "zeros around an image before the random crop of its size; 0 = no crop", ge=0, le=16, off="0"
    )
    flip: Literal["random", "alternating", "none"] = _setting(
        "augmentation",
        "random",
        "horizontal flip: of each image with probability 1/2, or of a random half in one epoch and the other half in "
        "the next",
        off="none",
    )
    mixup_alpha: float = _setting(
        "augmentation", 0.0, "MixUp: one lambda ~ Beta(alpha, alpha) a batch; 0 = off", ge=0, le=100, off="0"
    )
    cutmix_alpha: float = _setting(
        "augmentation",
        0.0,
        "CutMix: in each batch one box of every image is replaced by another image's; the part outside the box has a "
        "share ~ Beta(alpha, alpha); 0 = off",
        ge=0,
        le=100,
        off="0",
    )
    cutout: int = _setting(
        "augmentation", 0, "side of a square of each image that is set to the mean; 0 = off", ge=0, le=64, off="0"
    )

    low_res_epochs: int = _setting(
        "augmentation", 0, "epochs at the start that train on smaller images; 0 = none", ge=0, off="0"
    )
    low_res: int = _setting(
        "augmentation", 24, "side of the images in these epochs; crop and cutout shrink with them", ge=16, le=95
    )

    width_mult: float = _setting("model", 1.0, "scales the channels of every layer", ge=0.125, le=4)
    init_from: str = _setting(
        "model",
        "",
        "a run whose weights this one starts from; where the classes differ, the head is a new one",
        pattern=r"\A[^\x00]*\z",
        allowed="the folder of a run, or nothing",
    )
    init: Literal["default", "dirac"] = _setting(
        "model",
        "default",
        "initial weights: PyTorch's, or the identity for pointwise convolutions that keep the number of channels",
        off="default",
    )

    epochs: int = _setting("optimisation", 300, "passes over the training images", ge=1, le=100_000)
    batch_size: int = _setting(
        "optimisation", 128, "images a step; the epoch's last batch may be smaller", ge=1, le=65_536
    )
    lr: float = _setting(
        "optimisation", 0.05, "learning rate; the highest one where a schedule changes it", gt=0, le=100
    )
    momentum: float = _setting("optimisation", 0.9, "momentum of SGD", ge=0, lt=1, off="0")
    nesterov: bool = _setting("optimisation", False, "Nesterov momentum")
    weight_decay: float = _setting("optimisation", 0.0, "coupled L2 on the weights", ge=0, le=1, off="0")
    decay_norm_and_bias: bool = _setting("optimisation", True, "weight decay on batch norm and biases too")
    decay_depthwise: bool = _setting("optimisation", True, "weight decay on the depthwise filters too")
    lr_schedule: Literal["constant", "cosine"] = _setting(
        "optimisation", "constant", "cosine goes to 0 at the end, without restarts", off="constant"
    )
    lr_schedule_unit: Literal["epoch", "step"] = _setting(
        "optimisation", "epoch", "how often the schedule moves the learning rate"
    )
    lr_warmup_epochs: float = _setting(
        "optimisation", 0.0, "linear rise of the learning rate at the start, in epochs", ge=0, off="0"
    )
    label_smoothing: float = _setting(
        "optimisation", 0.0, "share of the target spread over all classes", ge=0, lt=1, off="0"
    )
    ema_decay: float = _setting(
        "optimisation",
        0.0,
        "evaluates an exponential moving average of the weights, with this decay a step; 0 = off",
        ge=0,
        lt=1,
        off="0",
    )
    average_epochs: int = _setting(
        "optimisation",
        0,
        "the trained model is the average of the weights after each of the last epochs, this many, with batch-norm "
        "statistics estimated again; 0 = off",
        ge=0,
        off="0",
    )
    seed: int = _setting(
        "optimisation", 0, "seed of the weights and of every draw in training", ge=0, le=2**32 - 1, changes_result=False
    )

    loader: Literal["resident", "torchvision", "dali"] = _setting(
        "loader",
        "resident",
        "what makes the batches: the device, from images that live there; torchvision's transforms in worker "
        "processes; or NVIDIA DALI",
        changes_result=False,
    )
    loader_workers: int = _setting(
        "loader",
        0,
        "worker processes of loader = torchvision, threads of dali; 0 = one for each CPU core",
        ge=0,
        le=1024,
        changes_result=False,
        resumable=True,
    )
    images_on: Literal["device", "host"] = _setting(
        "loader",
        "device",
        "where the resident loader keeps the images; host streams them, for a split larger than the device",
        changes_result=False,
        resumable=True,
    )

    engine: Literal["auto", "eager", "compiled", "fused"] = _setting(
        "engine",
        "auto",
        "what executes a step: plain PyTorch, torch.compile, or the extension's fused ops",
        changes_result=False,
        off="eager",
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = _setting(
        "engine", "default", "the mode of torch.compile, for engine = compiled", changes_result=False
    )
    fuse_pointwise: bool = _setting(
        "engine",
        True,
        "for engine = fused on CUDA in 16 bits: pointwise convolutions of large maps are part of the fused ops too, "
        "where channels are few",
        changes_result=False,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        "engine", "auto", "number format of convolutions and matrix products; weights stay fp32", changes_result=False
    )
    memory_format: Literal["channels_last", "contiguous"] = _setting(
        "engine",
        "channels_last",
        "order of activations in memory: NHWC, which is faster nearly everywhere, or PyTorch's own NCHW",
        changes_result=False,
    )
    device: str = _setting(
        "engine",
        "auto",
        "where to compute",
        pattern=r"\A(auto|cpu|cuda(:[0-9]{1,3})?)\z",
        allowed="auto, cpu, cuda or cuda:N",
        values="auto cpu cuda cuda:0",
        changes_result=False,
        resumable=True,
    )
    deterministic: bool = _setting(
        "engine", False, "only deterministic kernels: the same bits again on the same machine", changes_result=False
    )
    sync_batch_norm: bool = _setting(
        "engine",
        False,
        "for several processes: batch norm over the whole batch, and not over each process's part; engine = eager",
    )
    tuned: bool = _setting(
        "engine",
        True,
        "on the CPU: malloc settings and the faster forms of both convolutions; false = stock PyTorch",
        changes_result=False,
    )

    eval_batch_size: int = _setting(
        "evaluation and checkpoints", 1000, "images a batch in evaluation", ge=1, le=65_536, changes_result=False
    )
    eval_every: int = _setting(
        "evaluation and checkpoints",
        1,
        "epochs from one validation to the next; the last epoch is always validated",
        ge=1,
        changes_result=False,
    )
    test: bool = _setting(
        "evaluation and checkpoints",
        True,
        "measure the trained model on the test images, once, at its end; false leaves them unseen, as a search does",
        changes_result=False,
    )
    keep_best: bool = _setting(
        "evaluation and checkpoints",
        False,
        "keeps the weights of the epoch with the best validation accuracy beside the last ones, for --weights best; "
        "the test images are measured once, with the last weights, all the same",
        changes_result=False,
    )
    logger: Literal["none", "tensorboard", "trackio"] = _setting(
        "evaluation and checkpoints",
        "none",
        "what else shows the epochs while they run: TensorBoard's files in the run folder, or trackio's own data base",
        changes_result=False,
        resumable=True,
        off="none",
    )
    checkpoint_seconds: float = _setting(
        "evaluation and checkpoints",
        60.0,
        "least time between two checkpoints, in seconds; they are written at the end of an epoch, and where a signal "
        "stops the run; 0 = after every epoch",
        ge=0,
        changes_result=False,
        resumable=True,
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = [message for _, message in conflicts(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def about(name: str) -> dict[str, Any]:
    """What `_setting` was told of the setting `name` beside its bounds."""
    extra = Config.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return dict(extra)


NAMES = tuple(Config.model_fields)
RESUMABLE = tuple(name for name in NAMES if about(name)["resumable"])
"""What a resumed run may change: where it computes and reads, never what it computes."""


def conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """The rules between settings that `config` breaks, each with the settings it concerns."""
    if config.channels == 2:
        yield ("channels",), "channels = 2: images have 3, or 1 if they are grey"
    if config.nesterov and config.momentum == 0:
        yield ("nesterov", "momentum"), "nesterov = true needs momentum above 0"
    if config.lr_warmup_epochs > config.epochs:
        yield (
            ("lr_warmup_epochs", "epochs"),
            f"lr_warmup_epochs = {config.lr_warmup_epochs:g} must be at most epochs = {config.epochs}",
        )
    if config.keep_best and config.val_size == 0:
        yield ("keep_best", "val_size"), "keep_best = true needs validation images, and val_size = 0 holds none out"
    if config.low_res_epochs >= config.epochs:
        yield (
            ("low_res_epochs", "epochs"),
            f"low_res_epochs = {config.low_res_epochs} must be below epochs = {config.epochs}: the last epochs are "
            "for whole images",
        )
    if config.average_epochs > config.epochs:
        yield (
            ("average_epochs", "epochs"),
            f"average_epochs = {config.average_epochs} must be at most epochs = {config.epochs}",
        )
    if config.average_epochs and config.ema_decay:
        yield (
            ("average_epochs", "ema_decay"),
            f"average_epochs = {config.average_epochs} and ema_decay = {config.ema_decay:g}: one of them must be 0",
        )
    if config.mixup_alpha and config.cutmix_alpha:
        yield (
            ("mixup_alpha", "cutmix_alpha"),
            f"mixup_alpha = {config.mixup_alpha:g} and cutmix_alpha = {config.cutmix_alpha:g}: one of them must be 0",
        )
    if config.images_on == "host" and config.loader != "resident":
        yield (
            ("images_on", "loader"),
            f"images_on = host is for loader = resident; loader = {config.loader} keeps its images on the host anyway",
        )
    if config.memory_format == "contiguous" and config.engine == "fused":
        yield (
            ("memory_format", "engine"),
            "engine = fused computes in memory_format = channels_last; contiguous is for eager and compiled",
        )
    if config.sync_batch_norm and config.engine in ("compiled", "fused"):
        yield (
            ("sync_batch_norm", "engine"),
            f"sync_batch_norm = true is for engine = eager; with engine = {config.engine} batch norm is over each "
            "process's part of the batch",
        )
    if config.deterministic and config.engine != "eager" and config.compile_mode.startswith("max-autotune"):
        yield (
            ("deterministic", "compile_mode", "engine"),
            f"deterministic = true excludes compile_mode = {config.compile_mode}, which times kernels to choose one",
        )


def has_default_normalization(config: Config) -> bool:
    """Whether neither `mean` nor `std` was set: then the images decide."""
    return config.model_fields_set.isdisjoint({"mean", "std"})


def groups() -> dict[str, list[str]]:
    """The names of the settings by group, in order; `preset`, which is chosen and not set, is in none."""
    return {group: [name for name in NAMES if about(name)["group"] == group] for group in GROUPS}


def differing_settings(config: Config, other: Config) -> tuple[str, ...]:
    """The names of the settings that change a run's result and differ between the two, group by group."""
    names = [name for group in groups().values() for name in group if about(name)["changes_result"]]
    return tuple(name for name in names if getattr(config, name) != getattr(other, name))
