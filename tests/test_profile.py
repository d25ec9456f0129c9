"""The time of a step: the table of names on real steps and on a recorded GPU trace; the files of the command."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastcifar import ops
from fastcifar.cli import main as cli
from fastcifar.errors import UsageError
from fastcifar.layers import resolve
from fastcifar.measuring import layer_times, profile, profile_text, roofline
from fastcifar.measuring.kernels import (
    AUGMENTATION,
    BLOCK,
    COLOURS,
    COPIES,
    DEPTHWISE,
    FRAMEWORK,
    HEAD,
    IDLE,
    KINDS,
    NORM,
    OPTIMIZER,
    POINTWISE,
    PYTHON,
    SEPARABLE,
    STEM,
    STEP,
    UNCLASSIFIED,
    Shapes,
    breakdown,
    kind_of_kernel,
    kind_of_op,
)
from fastcifar.measuring.layers import list_layers
from fastcifar.measuring.roofline_chart import draw_roofline
from fastcifar.measuring.roofs import Roofs
from fastcifar.target import Target
from fastcifar.ui import drawing

pytestmark = pytest.mark.machine

SHAPES = Shapes(batch_size=16, num_classes=100)
TINY = [("device", "cpu"), ("width_mult", "0.125"), ("batch_size", "16"), ("mixup_alpha", "0.2")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs and layers are timed only once, which is enough to see that every part is there."""
    monkeypatch.setattr(
        layer_times, "time_calls", lambda calls, device: [[(call(), 1e-3 * (i + 1))[1]] for i, call in enumerate(calls)]
    )
    roofs = Roofs(((2**18, 5e10), (2**29, 1e10)), 1e12)
    monkeypatch.setattr(profile, "measure_roofs", lambda device, dtype: roofs)


@pytest.mark.parametrize(
    ("engine", "own_products", "channels"),
    [("eager", False, 3), ("eager", False, 1), ("fused", False, 3), ("fused", True, 3), ("fused", True, 1)],
    ids=["eager", "eager, grey", "fused", "own products", "own products, grey"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_op_of_a_step_has_a_kind(
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    own_products: bool,
    channels: int,
    precision: str,
) -> None:
    """The bug: with channels = 1 it crashed as it timed the stem, and called the stem's convolution depthwise."""
    monkeypatch.setattr(Target, "fuses_pointwise", own_products)
    monkeypatch.setattr(profile, "draw_times", lambda *arguments: [])
    monkeypatch.setattr(profile, "draw_roofline", lambda *arguments: [])
    if engine == "fused" and not ops.available("cpu"):
        pytest.skip("the fused ops are not built")
    settings = [("engine", engine), ("precision", precision), ("channels", str(channels))]
    config = resolve("final", None, [*TINY, *settings])
    result = profile.profile(config, tmp_path / "out", 2)
    found = result.breakdown
    unknown = [name for kind, name in found.names if kind == UNCLASSIFIED]
    assert not unknown
    assert sum(cost.ms for cost in found.kinds.values()) == pytest.approx(found.step_ms)
    assert sum(cost.ms for cost in found.names.values()) == pytest.approx(found.step_ms)
    assert found.num_steps == 2 and found.calls == pytest.approx(round(found.calls))
    calls = {kind: cost.calls for kind, cost in found.kinds.items()}
    if engine == "fused":
        block, other, of_blocks = (SEPARABLE, BLOCK, 2) if own_products else (BLOCK, SEPARABLE, 26)
        assert calls[block] == of_blocks and not {other, DEPTHWISE} & calls.keys()
        assert calls[NORM] < 10
    else:
        assert calls[DEPTHWISE] == 26 and BLOCK not in calls
        assert calls[NORM] == 4 * 27  # BN and ReLU, forward and backward
    assert calls.get(POINTWISE, 0) in ((0,) if own_products else (26, 39))  # backward as one op, or two products
    assert calls[STEM] == 2 and calls[AUGMENTATION] == 1
    assert {HEAD, OPTIMIZER, PYTHON} <= calls.keys() <= KINDS.keys() == COLOURS.keys()
    assert FRAMEWORK in calls or own_products  # such a step is made of the extension's ops
    assert COPIES in calls or (engine, precision) != ("eager", "bf16")


def test_the_command_leaves_tables_pictures_and_a_trace(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [word for key, value in TINY for word in (f"--{key}", value)]
    measured, measure = [], profile.profile
    monkeypatch.setattr(profile, "profile", lambda *asked: measured.append(measure(*asked)) or measured[0])
    assert cli.main(["profile", *settings, "--engine", "eager", "--precision", "fp32", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    [folder] = (tmp_path / "runs/profile").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "trace.json.gz", "profile.json", "layers.csv", "names.csv",
        "time.svg", "time.png", "roofline.svg", "roofline.png",
    }  # fmt: skip
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        trace = json.load(file)
    assert sum(event.get("name") == STEP for event in trace["traceEvents"]) == 2
    written = json.loads((folder / "profile.json").read_text())
    monkeypatch.setattr(profile, "profile", lambda *asked: measured[0])
    assert cli.main(["profile", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"results": str(measured[0].path), **written}
    assert written["images_per_second"] == pytest.approx(16 / written["step_seconds"])
    assert written["floor_seconds"] == pytest.approx(
        sum(layer["count"] * layer["floor_seconds"] for layer in written["layers"])
    )
    assert written["layers_alone_seconds"] == pytest.approx(
        sum(layer["count"] * layer["seconds"] for layer in written["layers"])
    )
    assert sum(kind["ms"] for kind in written["profiled"]["kinds"].values()) == pytest.approx(
        written["profiled"]["step_ms"]
    )
    assert len((folder / "layers.csv").read_text().splitlines()) == 1 + len(written["layers"])
    assert b"</svg>" in (folder / "roofline.svg").read_bytes()[-20:]
    for line in ("eager, fp32, batch 16, width 0.125", "its floor", "where the time goes", "pointwise 64->128 @2x2"):
        assert line in printed


def test_a_time_below_its_floor_has_a_footnote() -> None:
    layers = list_layers(Target(resolve("final", None, [*TINY, ("engine", "eager"), ("precision", "fp32")])))[:1]
    rows = roofline.rows_of(layers, roofs := Roofs(((1, 1e9), (10**9, 1e9)), 1e12))

    def lines(forward: float, backward: float) -> list[str]:
        times = [forward * rows[0].floor_seconds, backward * rows[1].floor_seconds]
        return profile_text.footnote(roofline.rows_of(layers, roofs, [times]))

    assert profile_text.footnote(rows) == lines(1.2, 0.96) == [] and len(lines(1.2, 0.94)) == 2
    assert lines(0.7, 1.0)[1] == "other programs ran; measure again on a quiet machine"


def test_the_words_of_a_roofline_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a label was cut at the left edge, another lay under points, and a number in its point's circle."""
    figures: list[Figure] = []
    monkeypatch.setattr(drawing, "save", lambda figure, path_stem: figures.append(figure))
    monkeypatch.setattr(Target, "fuses_pointwise", True)
    settings = [("device", "cpu"), ("engine", "fused"), ("precision", "bf16")]
    layers = list_layers(Target(resolve("final", None, settings)))
    roofs = Roofs(((2**18, 193e9), (2**29, 13e9)), 0.14e12)
    floors = [roofline.rows_of([layer], roofs) for layer in layers]
    times = [[r.floor_seconds * (0.8 if r.work.intensity > 10 else 3) for r in rows] for rows in floors]
    times[-1] = [9 * sum(map(sum, times))]  # a circle nine times as large as all others together
    draw_roofline(roofline.rows_of(layers, roofs, times), roofs, tmp_path / "roofline", "title")
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    words = {text.get_text(): text.get_window_extent() for text in axes.texts}
    box = axes.get_window_extent()
    to_pixels = figures[0].dpi / 72
    circles = []
    for points in axes.collections:
        [place] = axes.transData.transform(points.get_offsets())
        circles.append((*place, math.sqrt(points.get_sizes()[0]) / 2 * to_pixels))
    labels = [label for name, label in words.items() if not name.isdecimal()]
    assert len(labels) == 3 and all(box.x0 <= label.x0 and label.x1 <= box.x1 for label in labels)
    product = next(label for name, label in words.items() if name.startswith("matrix product"))
    assert not any(product.padded(radius).contains(x, y) for x, y, radius in circles)
    x, _, radius = max(circles, key=lambda circle: circle[2])
    number = next(text for text in axes.texts if text.get_text() == "1")
    assert Text.get_window_extent(number).x0 > x + radius + 4 * to_pixels, "the text alone, without its line"


def test_compiled_has_floors_but_no_layers_to_time(tmp_path: Path) -> None:
    config = resolve("final", None, [*TINY, ("engine", "compiled"), ("precision", "fp32")])
    layers = list_layers(Target(config))
    rows = roofline.rows_of(layers, Roofs(((1, 1e9), (10**9, 1e9)), 1e12), [None] * len(layers))
    _, table = profile_text.layers_table(rows)
    assert all(row[4].strip() == row[5].strip() == "-" for row in table)


def test_wrong_wishes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UsageError, match="not empty"):
        profile.profile(resolve("final", None, TINY), tmp_path / "full")
    assert cli.main(["profile", "--step", "3", "--lrr", "1", "--preset", "finall"]) == 2
    errors = capsys.readouterr().err
    assert "did you mean --steps?" in errors and "did you mean --lr?" in errors and "did you mean final?" in errors
    assert cli.main(["profile", "--steps", "0"]) == 2
    assert "'0': expected a number from 1" in capsys.readouterr().err


# ---- a trace as CUPTI writes it ----


def host(name: str, start: float, dur: float, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": dur, "tid": 1, "args": args}


def launch(start: float, correlation: int) -> dict[str, Any]:
    return host("cudaLaunchKernel", start, 1, "cuda_runtime", correlation=correlation)


def kernel(name: str, start: float, dur: float, correlation: int, cat: str = "kernel") -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "ts": start,
        "dur": dur,
        "tid": 7,
        "args": {"correlation": correlation},
    }


def test_kernels_have_the_kind_of_the_op_that_launched_them() -> None:
    depthwise = [[16, 32, 8, 8], [32, 1, 3, 3]]
    events = [
        host(STEP, 0, 100, "user_annotation"),
        host("aten::cudnn_convolution", 1, 10, **{"Input Dims": depthwise}),
        launch(2, 1),
        launch(4, 2),  # a reorder inside the convolution
        host("Optimizer.step#SGD.step", 20, 10, "user_annotation"),
        launch(21, 3),
        launch(40, 4),  # by an op that the table does not know
        kernel("nchwToNhwcKernel", 50, 5, 1),
        kernel("some_cudnn_kernel", 55, 15, 2),
        kernel("void at::native::multi_tensor_apply_kernel<A<int>, FusedSgd>(A<int>)", 65, 10, 3),  # on another stream
        kernel("void mystery<float>(int)", 80, 10, 4),
        kernel("Memset (Device)", 95, 5, 99, "gpu_memset"),
    ]
    found = breakdown({"traceEvents": events}, SHAPES)
    assert found.on_device and found.calls == 5
    ms = {kind: cost.ms * 1e3 for kind, cost in found.kinds.items()}
    assert ms == pytest.approx({DEPTHWISE: 20, OPTIMIZER: 5, UNCLASSIFIED: 10, COPIES: 5, IDLE: 10})
    assert found.step_ms * 1e3 == pytest.approx(50) == pytest.approx(sum(ms.values()))
    assert found.names[UNCLASSIFIED, "mystery"].calls == 1


def test_kernels_of_a_replayed_graph_have_the_kind_of_their_name() -> None:
    graph = [host(STEP, 0, 10, "user_annotation"), host("cudaGraphLaunch", 1, 2, "cuda_runtime", correlation=5)]
    names = {
        "void fastcifar::cuda::dwconv3x3_forward<__nv_bfloat16, 4, 2>(Arguments)": DEPTHWISE,
        "void fastcifar::cuda::(anonymous namespace)::moments_kernel<float>(float const*, int)": NORM,
        "fastcifar::cuda::update_statistics_kernel(fastcifar::cuda::(anonymous namespace)::StatisticsTable)": NORM,
        "fastcifar::cuda::advance_step_kernel(fastcifar::StepOfRun)": OPTIMIZER,
        "void fastcifar::cuda::merge_classifier_kernel<fastcifar::bf16>(Arguments<fastcifar::bf16>, int)": HEAD,
        "fastcifar::cuda::augment_kernel<__nv_bfloat16>(AugmentArguments, __nv_bfloat16*)": AUGMENTATION,
        "nvjet_hsh_64x8_64x16_4x1_v_bz_TNT": POINTWISE,
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize64x64x64": POINTWISE,
        "void cudnn::detail::dgrad2d_grouped_direct_kernel<float>()": DEPTHWISE,
        "void at::native::batch_norm_collect_statistics_channels_last_kernel<float>()": NORM,
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedSgdMathFunctor<float, 4>>": OPTIMIZER,
        "triton_red_fused__native_batch_norm_legit_functional_relu_3": NORM,
        "void (anonymous namespace)::softmax_warp_forward<float, float, 7, true>": HEAD,
        "Memcpy DtoD (Device -> Device)": COPIES,
        "something_else": UNCLASSIFIED,
    }
    kernels = [kernel(name, 20 + 2 * i, 2, 5) for i, name in enumerate(names)]
    found = breakdown({"traceEvents": graph + kernels}, SHAPES)
    assert {name: kind_of_kernel(name) for name in names} == names
    assert found.calls == len(names) and found.kinds[DEPTHWISE].calls == 2 and not found.kinds[IDLE].ms


def test_products_and_casts_are_told_apart() -> None:
    assert kind_of_op("aten::mm", [[16, 100], [100, 1024]], SHAPES) == HEAD
    assert kind_of_op("aten::mm", [[100, 16], [16, 1024]], SHAPES) == HEAD
    assert kind_of_op("aten::mm", [[64, 16], [16, 100]], SHAPES) == POINTWISE  # a width of 100
    assert kind_of_op("aten::linear", [[16, 4, 4, 32], [64, 32], []], SHAPES) == POINTWISE
    assert kind_of_op("aten::convolution_backward", [[1], [1], [64, 32, 1, 1]], SHAPES) == POINTWISE
    assert kind_of_op("aten::conv2d", [[16, 3, 32, 32], [32, 3, 3, 3]], SHAPES) == STEM
    assert kind_of_op("aten::conv2d", [[16, 1, 32, 32], [32, 1, 3, 3]], SHAPES) == STEM
    assert kind_of_op("aten::mul", [[16, 512, 8, 8]], SHAPES) is None  # too large for the loss: shown as unclassified
    events = [
        host(STEP, 0, 100, "user_annotation"),
        host("aten::conv2d", 10, 50, **{"Input Dims": [[16, 32, 8, 8], [64, 32, 1, 1]]}),
        host("aten::_to_copy", 12, 8),  # autocast's
        host("aten::copy_", 13, 6),
        host("aten::copy_", 30, 5),  # a reorder
    ]
    found = breakdown({"traceEvents": events}, SHAPES)
    ms = {kind: cost.ms * 1e3 for kind, cost in found.kinds.items()}
    assert ms == pytest.approx({PYTHON: 50, POINTWISE: 42, COPIES: 8})
    assert math.isclose(found.calls, 2)


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no range called"):
        breakdown({"traceEvents": []}, SHAPES)
