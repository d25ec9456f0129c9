"""A run's model in each format, as bytes, and each read back as its users will read it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.errors import UsageError
from fastcifar.model import MobileNet, copy_tensors

Function = Callable[[Tensor], Tensor]
"""images, float32 [N, C, S, S] from 0 to 1 -> logits, float32 [N, num_classes], for any N."""

OPSET = 18
"""Of the ONNX file: ONNX Runtime has read it since version 1.14."""


class Classifier(nn.Module):
    """A run's model with its normalisation: images [N, C, S, S] from 0 to 1 -> logits [N, num_classes].

    Args:
        model: in evaluation mode.
        mean: of the channels.
        std: of the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: MobileNet, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """images [N, C, S, S] from 0 to 1 -> logits [N, num_classes]."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        file: the name of the file.
        usage: Python code that reads `file` and classifies `images`, for the model card.
        write: a classifier, images to trace it with and what is to be said in the file -> the file's bytes.
        read: the file's bytes and the classifier that it was made of -> the function that the file holds.
    """

    file: str
    usage: str
    write: Callable[[Classifier, Tensor, Mapping[str, Any]], bytes]
    read: Callable[[bytes, Classifier], Function]


def check_available(name: str) -> None:
    """Refuses a format whose packages are not installed.

    Raises:
        UsageError: a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise UsageError(
                f"--format onnx needs a package that is not installed, {package} ({error}): pip install "
                "'fastcifar[onnx]'"
            ) from error


def _write_onnx(classifier: Classifier, images: Tensor, facts: Mapping[str, Any]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own insides
        program = torch.onnx.export(
            classifier,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


def _read_onnx(content: bytes, classifier: Classifier) -> Function:
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(classifier: Classifier, images: Tensor, facts: Mapping[str, Any]) -> bytes:
    program = torch.export.export(classifier, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"config.json": json.dumps(dict(facts))})
    return content.getvalue()


def _read_pt2(content: bytes, classifier: Classifier) -> Function:
    return torch.export.load(io.BytesIO(content)).module()


def _write_safetensors(classifier: Classifier, images: Tensor, facts: Mapping[str, Any]) -> bytes:
    import safetensors.torch

    tensors = {name: tensor.contiguous() for name, tensor in classifier.model.state_dict().items()}
    content: bytes = safetensors.torch.save(tensors, {key: json.dumps(value) for key, value in facts.items()})
    return content


def _read_safetensors(content: bytes, classifier: Classifier) -> Function:
    import copy

    import safetensors.torch

    fresh = copy.deepcopy(classifier)
    for tensor in fresh.model.state_dict().values():
        tensor.fill_(float("nan"))  # what the file does not hold would be seen
    copy_tensors(fresh.model, safetensors.torch.load(content))
    return fresh


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        "model.onnx",
        """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {"images": images})[0]
""",
        _write_onnx,
        _read_onnx,
    ),
    "pt2": Format(
        "model.pt2",
        """\
import torch

model = torch.export.load("model.pt2").module()
logits = model(torch.from_numpy(images))
""",
        _write_pt2,
        _read_pt2,
    ),
    "safetensors": Format(
        "model.safetensors",
        """\
import json

import safetensors.torch
import torch
from fastcifar.model import MobileNet, copy_tensors

with open("config.json") as file:
    config = json.load(file)
model = MobileNet(len(config["classes"]), config["width_mult"], config["channels"]).eval()
copy_tensors(model, safetensors.torch.load_file("model.safetensors"))
mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
logits = model((torch.from_numpy(images) - mean) / std)
""",
        _write_safetensors,
        _read_safetensors,
    ),
}
