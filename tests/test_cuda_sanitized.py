"""The emulated CUDA kernels under sanitizers, and that the sanitizers and the emulator see planted bugs.

Each test runs in a process of its own: a broken kernel may end its process, and a process can load one library only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import emulator
import pytest

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to build the emulated kernels"),
    pytest.mark.sanitized,
]

EMULATED = str(Path(__file__).with_name("test_cuda_emulated.py"))
SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
torch.manual_seed(0)
x = torch.randn(2, 34, 9, 12).contiguous(memory_format=torch.channels_last)
w = torch.randn(34, 1, 3, 3)
y = op.dwconv3x3(x, w, 1)
grad_x, grad_w = op._dwconv3x3_backward(y, x, w, 1, True, True)
xd, wd = x.double().requires_grad_(), w.double().requires_grad_()
truth = torch.nn.functional.conv2d(xd, wd, padding=1, groups=34)
truth_x, truth_w = torch.autograd.grad(truth, (xd, wd), y.double())
for a, b in ((y, truth), (grad_x, truth_x), (grad_w, truth_w)):
    assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-4), "WRONG RESULT"
print("CORRECT")
"""
STEP_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
images, labels, position = torch.zeros(3, 5, 5, 3, dtype=torch.uint8), torch.arange(3), torch.arange(3)
table = torch.zeros(256, 3)
epoch = (images, labels, position, position * 0, position * 0, position > 3, None, None, None, None, torch.tensor(0))
op.training_batch(*epoch, 3, 3, table, 4, 0, torch.float32)
logits = torch.zeros(3, 5)
_, _, _, normalizer = op.mixup_cross_entropy(logits, labels, None, None, 0.1)
op._mixup_cross_entropy_backward(torch.ones(()), logits, normalizer, labels, None, None, 0.1)
totals = torch.zeros(2, dtype=torch.float64)
op.mixup_cross_entropy_gradient(logits, labels, None, None, 0.1, torch.ones(()), totals)
parameter, grad, buffer = torch.zeros(1030), torch.zeros(1030), torch.zeros(1030)
op.sgd([parameter], [grad], [buffer], [], torch.zeros(()), [0.1], 0.9, True)
running_mean, running_var, mean, variance = torch.zeros(4, 301)
op.update_statistics([running_mean], [running_var], [mean], [variance], [5], 0.1)
op.advance_step(torch.arange(2), torch.zeros(2), torch.zeros(1))
print("CORRECT")
"""
PLANE_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for size in (4, 8):
    u, c = torch.zeros(33, 16, size, size).bfloat16().contiguous(memory_format=torch.channels_last), torch.ones(16)
    torch.ops.fastcifar_emulated.depthwise_block(u, c, c, torch.zeros(16, 1, 3, 3), c, c, 1e-5, 1)
print("CORRECT")
"""
POOL_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
for size in (2, 4):
    u, c = torch.zeros(33, 16, size, size).bfloat16().contiguous(memory_format=torch.channels_last), torch.ones(16)
    pooled, mean, var = op.batch_norm_relu_pool(u, c, c, 1e-5)
    op._batch_norm_relu_pool_backward(pooled, u, c, c, mean, var, 1e-5)
print("CORRECT")
"""
GIVEN_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
u, c, w = torch.zeros(5, 6, 6, 16).bfloat16().permute(0, 3, 1, 2), torch.ones(16), torch.zeros(16, 1, 3, 3)
z, grad_u = torch.empty_like(u), torch.empty_like(u)
y, *statistics = op._depthwise_block_into(z, u, c, c, w, c, c, 1e-5, 1)
op._depthwise_block_backward_into(grad_u, z, u, y, c, c, w, c, c, *statistics, 1e-5, 1)
try:
    op._depthwise_block_into(torch.empty_like(u[:4]), u, c, c, w, c, c, 1e-5, 1)
except RuntimeError:
    print("CORRECT")
"""
STEM_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
torch.manual_seed(0)
x, w = torch.randn(20, 3, 6, 4), torch.randn(18, 3, 3, 3)  # five tiles a block
u, rows = op.stem(x, w)
grad_w = op._stem_backward(u, x, w)
xd, wd = x.double(), w.double().requires_grad_()
truth = torch.nn.functional.conv2d(xd, wd, padding=1)
truth_w, = torch.autograd.grad(truth, wd, u.double())
assert rows[:, 0].sum(0).eq(20 * 6 * 4).all(), "WRONG RESULT"
for a, b in ((u, truth), (grad_w, truth_w)):
    assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-3), "WRONG RESULT"
print("CORRECT")
"""
STEM_TENSOR_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
torch.manual_seed(0)
x, w = torch.randn(20, 3, 6, 4).bfloat16(), torch.randn(16, 3, 3, 3).bfloat16()  # 20 tiles for 16 blocks
u, rows = op.stem(x, w)
grad_w = op._stem_backward(u, x, w, torch.zeros_like(rows), u, rows)
xd, wd = x.double(), w.double().requires_grad_()
truth = torch.nn.functional.conv2d(xd, wd, padding=1)
truth_w, = torch.autograd.grad(truth, wd, u.double())
assert rows[:, 0].sum(0).eq(20 * 6 * 4).all(), "WRONG RESULT"
for a, b in ((u, truth), (grad_w, truth_w)):
    assert torch.allclose(a.double(), b, rtol=1e-2, atol=1e-2), "WRONG RESULT"
print("CORRECT")
"""
STREAM_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
op = torch.ops.fastcifar_emulated
u = torch.zeros(40, 16, 6, 5).bfloat16().contiguous(memory_format=torch.channels_last)
c, w, pointwise = torch.ones(16), torch.zeros(16, 1, 3, 3), torch.zeros(24, 16, 1, 1).bfloat16()
v, rows, y, *statistics = op.separable_block(u, c, c, w, c, c, pointwise, 1e-5, 1)
u_rows = torch.ones(1, 3, 16)
op._separable_block_backward(v, u, y, c, c, w, c, c, pointwise, *statistics, 1e-5, 1, u_rows, rows, v, rows)
print("CORRECT")
"""
CLASSIFIER_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
totals = torch.zeros(2, dtype=torch.float64)
pooled, weight, bias = torch.rand(20, 128).bfloat16(), torch.randn(10, 128).bfloat16(), torch.zeros(10).bfloat16()
labels = torch.arange(20) % 10
op = torch.ops.fastcifar_emulated.classifier_gradient
_, _, grad_bias = op(pooled, weight, bias, labels, None, None, 0.1, torch.ones(()), totals)
assert grad_bias.float().sum().abs() < 0.02, "WRONG RESULT"
print("CORRECT")
"""
OPS_USED = {
    CLASSIFIER_SCRIPT: ("classifier_gradient",),
    STREAM_SCRIPT: ("separable_block", "depthwise_block"),
    STEM_SCRIPT: ("stem",),
    STEM_TENSOR_SCRIPT: ("stem",),
    SCRIPT: ("dwconv3x3",),
    STEP_SCRIPT: (
        "training_batch",
        "mixup_cross_entropy",
        "mixup_cross_entropy_gradient",
        "sgd",
        "update_statistics",
        "advance_step",
    ),
    PLANE_SCRIPT: ("depthwise_block",),
    POOL_SCRIPT: ("batch_norm_relu_pool",),
    GIVEN_SCRIPT: ("depthwise_block",),
}
SCRIPTS = {
    "pointwise_stream": STREAM_SCRIPT,
    "pointwise_backward": STREAM_SCRIPT,
    "plane": PLANE_SCRIPT,
    "depthwise_plane": PLANE_SCRIPT,
    "batch_norm_relu_pool": POOL_SCRIPT,
    "depthwise_block_op": GIVEN_SCRIPT,
    "dwconv3x3_forward": SCRIPT,
    "training_batch": STEP_SCRIPT,
    "classifier_gradient": CLASSIFIER_SCRIPT,
    "mixup_cross_entropy": STEP_SCRIPT,
    "mixup_cross_entropy_gradient": STEP_SCRIPT,
    "sgd": STEP_SCRIPT,
    "update_statistics": STEP_SCRIPT,
    "advance_step": STEP_SCRIPT,
    "stem": STEM_SCRIPT,
    "stem_tensor": STEM_TENSOR_SCRIPT,
}
BFLOAT16_SCRIPTS = (
    PLANE_SCRIPT,
    POOL_SCRIPT,
    GIVEN_SCRIPT,
    STREAM_SCRIPT,
    STEM_TENSOR_SCRIPT,
    CLASSIFIER_SCRIPT,
)
# bug -> file, what it says, what it says with the bug
PLANTED = {
    "a load beyond the last column": (
        "dwconv3x3_forward.cuh",
        "static_cast<unsigned>(iw) < static_cast<unsigned>(W)",
        "iw >= 0",
    ),
    "a load beyond the last row": (
        "dwconv3x3_forward.cuh",
        "static_cast<unsigned>(H));",
        "static_cast<unsigned>(H + 1));",
    ),
    "a store beyond the last row": ("dwconv3x3_forward.cuh", "if (!WHOLE && oh0 + r >= Ho) continue;", ""),
    "one float of shared memory too few": (
        "dwconv3x3_forward.cuh",
        "taps, 9 * kBlockChannels)",
        "taps, 9 * kBlockChannels - 1)",
    ),
    "a pixel behind the last map": (
        "plane.cuh",
        "first + i * pixel), is_image",
        "first + (i + 1) * pixel), is_image",
    ),
    "a gradient behind the last image": (
        "batch_norm_relu_pool.cu",
        "at_byte(grad, at.image * pixel + own), is_image",
        "at_byte(grad, at.image * pixel + own), true",
    ),
    "a result behind memory that is given": (
        "depthwise_block_op.cpp",
        """a.z = placed(op, "z", z, {""",
        """a.z = z ? *z : placed(op, "z", z, {""",
    ),
    "a pixel above the image": ("training_batch.cu", "inside = i >= 0 && i < a.size", "inside = i < a.size"),
    "an element of the last parameter's neighbour": (
        "sgd.cu",
        "ps[k] = load_if<V>(t.param + i, i < end)",
        "ps[k] = load_if<V>(t.param + i, true)",
    ),
    "a channel behind the last": ("update_statistics.cu", "if (c >= s.channels) return;", ""),
    "a number of the images behind the last row": (
        "stem.cu",
        "static_cast<unsigned>(y) < static_cast<unsigned>(H)",
        "y >= 0",
    ),
    "a gradient behind the last row": ("stem.cu", "c < s.C && y0 < s.H ? s.W - x0 : 0", "c < s.C ? s.W - x0 : 0"),
    "a pixel behind the last": ("stem.cu", "c >= s.C || y0 >= s.H || x0 >= s.W", "c >= s.C || x0 >= s.W"),
    "no room for the last sums": ("stem.cu", "shared, kLanes* kSums)", "shared, kLanes* kSums - 1)"),
    "two pixels of the images behind the last row": (
        "stem_tensor.cuh",
        "static_cast<unsigned>(y) < static_cast<unsigned>(H)",
        "y >= 0",
    ),
    "a gradient of a row behind the last": ("stem_tensor.cuh", "c < C ? H - y : 0", "c < C ? kTensorHeight : 0"),
    "a result in a row behind the last": ("stem_tensor.cuh", "if (y >= s.H) continue;", ""),
    "no room for the last pixel of a tile": ("stem_tensor.cuh", "tile, Tile::kAllWords)", "tile, Tile::kAllWords - 8)"),
    "a pixel behind the last one": (
        "pointwise_stream.cuh",
        "m < a.M && block * 32 + q * 8 < a.K",
        "m < a.M + 64 && block * 32 + q * 8 < a.K",
    ),
    "a gradient behind the last pixel": (
        "pointwise_backward.cuh",
        "place), m < a.M && c < a.O)",
        "place), m < a.M + 64 && c < a.O)",
    ),
    "a result behind the last pixel": (
        "pointwise_backward.cuh",
        "if (m < a.M && channel < a.C)",
        "if (channel < a.C)",
    ),
    "a sum behind the last row": ("pointwise_backward.cuh", "r < count && column < width", "column < width"),
    "a logit beyond the last": ("mixup_cross_entropy.cuh", "k < t.classes", "k <= t.classes"),
    "an image behind the last": ("classifier_gradient.cu", "column), m < t.rows)", "column), true)"),
    "a class behind the last": ("classifier_gradient.cu", "column), n < t.classes)", "column), true)"),
    "a result behind the last image": ("classifier_gradient.cu", "          if (image < t.rows)\n", ""),
    "a result behind the last class": ("classifier_gradient.cu", "} else if (m < t.classes) {", "} else {"),
    "a bias behind the last": ("classifier_gradient.cu", "else if (own < t.classes)", "else"),
    "a gradient beyond the last": ("mixup_cross_entropy_gradient.cu", "k < t.classes", "k <= t.classes"),
}
# Types that the script does not use need not be compiled.
FLOAT_ONLY = {
    "cuda/device.cuh": (
        "case Dtype::kBFloat16: return f(bf16());\n    case Dtype::kFloat16: return f(fp16());",
        "default:;",
    )
}
BFLOAT16_ONLY = {
    "cuda/device.cuh": (
        "case Dtype::kFloat32: return f(float());\n    case Dtype::kBFloat16: return f(bf16());\n"
        "    case Dtype::kFloat16: return f(fp16());",
        "default: return f(bf16());",
    )
}


# race -> file, what it says, what it says with the race
RACES = {
    "sums of a block that another one has not written yet": (
        "plane.cuh",
        "  arrive_at_cluster();\n  wait_for_cluster();\n  // A channel's blocks",
        "  // A channel's blocks",
    ),
    "statistics that two lanes write": ("plane.cuh", "if (first == 0) {", "{"),
    "pixels of half a map that its thread has not written yet": (
        "depthwise_plane.cuh",
        "if constexpr (kShared) __syncthreads();",
        "",
    ),
    "statistics that every image writes": (
        "batch_norm_relu_pool.cu",
        "if (at.writes_results())",
        "if (is_image)",
    ),
    "taps that are read before they are written": (
        "dwconv3x3_tile.cuh",
        "= own_[k];\n    }\n    __syncthreads();",
        "= own_[k];\n    }",
    ),
    "one row of partial sums for all blocks": (
        "statistics.cuh",
        "const int64_t row = static_cast<int>(blockIdx.y) / (cluster_blocks() == 1 ? 1 : kClusterBlocks);",
        "const int64_t row = 0;",
    ),
    "a tile that is written while it is read": ("stem.cu", "turn * Tiles::kFloats;", "0 * turn;"),
    "sums that are read before they are written": (
        "stem.cu",
        "__syncthreads();  // the tiles, or the sums before, may still be read",
        "",
    ),
    "a tile of pairs that is written while it is read": (
        "stem_tensor.cuh",
        "__syncthreads();  // the tile before may still be read",
        "",
    ),
    "a tile of pairs that is read before it is there": (
        "stem_tensor.cuh",
        "gradient.put(pixels.at, parts, of_grad);\n    __syncthreads();",
        "gradient.put(pixels.at, parts, of_grad);",
    ),
    "taps that are read before they are there": (
        "stem_tensor.cuh",
        "__syncthreads();\n  Fragment weight",
        "Fragment weight",
    ),
    "sums that lie over a tile while it is read": (
        "stem_tensor.cuh",
        "__syncthreads();  // the last tile may still be read",
        "",
    ),
    "a weight that is read before it is there": (
        "pointwise_stream.cuh",
        "of_weight.put(weight);\n  __syncthreads();",
        "of_weight.put(weight);",
    ),
    "a tile that is read before it is there": (
        "pointwise_backward.cuh",
        "put(tile * kRows);\n    __syncthreads();",
        "put(tile * kRows);",
    ),
    "a tile that lies over the weight while it is read": (
        "pointwise_backward.cuh",
        "slice + second);\n      __syncthreads();",
        "slice + second);",
    ),
    "z that is read before it is there": (
        "pointwise_backward.cuh",
        "= pack;\n      }\n    }\n    __syncthreads();",
        "= pack;\n      }\n    }",
    ),
    "gradients that another block has not written yet": (
        "classifier_gradient.cu",
        "  arrive_at_cluster();\n  wait_for_cluster();\n\n  Pack<T, 8> grads",
        "  Pack<T, 8> grads",
    ),
    "gradients that are read before they are there": (
        "classifier_gradient.cu",
        "from here on\n  __syncthreads();",
        "from here on",
    ),
    "a slice that is read before it is there": (
        "classifier_gradient.cu",
        "    __syncthreads();\n  };",
        "  };",
    ),
    "a channel that two blocks write": (
        "update_statistics.cu",
        "blockIdx.x * kThreads +",
        "blockIdx.x * (kThreads - 1) +",
    ),
    "a step that two threads count": ("advance_step.cu", "dim3(1), dim3(1)", "dim3(1), dim3(2)"),
    "a row that groups without a row write too": ("mixup_cross_entropy.cuh", "if (live) results.row", "results.row"),
    "a label that a row of pixels writes": (
        "training_batch.cu",
        "if (row == 0 && column == 0)",
        "if (row == 0)",
    ),
}


def types_of(script: str) -> dict[str, tuple[str, str]]:
    return BFLOAT16_ONLY if script in BFLOAT16_SCRIPTS else FLOAT_ONLY


needs_setarch = pytest.mark.skipif(not shutil.which("setarch"), reason="needs setarch (apt install util-linux)")


def run_script(
    library: Path, env: dict[str, str] | None = None, script: str = SCRIPT, python: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    command = [*python, "-W", "ignore", "-c", script, str(library)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def races(library: Path, script: str) -> int:
    """The number of data races that ThreadSanitizer reports."""
    done = run_script(library, emulator.race_environment(), script, emulator.RACE_COMMAND)
    assert "CORRECT" in done.stdout or "WRONG RESULT" in done.stderr, done.stderr[-3000:]
    return done.stderr.count("WARNING: ThreadSanitizer: data race")


@pytest.mark.parametrize(
    "bug", [next(iter(PLANTED)), *(pytest.param(bug, marks=pytest.mark.slow) for bug in [*PLANTED][1:])]
)
def test_sanitizers_see_a_planted_bug(bug: str) -> None:
    file, right, wrong = PLANTED[bug]
    script = SCRIPTS[file.split(".")[0]]
    edits = types_of(script) | {f"cuda/{file}": (right, wrong)}
    library = emulator.build(emulator.SANITIZED, ops=OPS_USED[script], edits=edits)
    done = run_script(library, emulator.sanitizer_environment(), script)
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr, done.stderr[-2000:]


def test_a_removed_barrier_is_seen() -> None:
    removed = emulator.build([*emulator.PLAIN, "-DEMU_NO_BARRIER"], ops=("dwconv3x3",), edits=FLOAT_ONLY)
    intact = emulator.build(emulator.PLAIN, ops=("dwconv3x3",), edits=FLOAT_ONLY)
    assert run_script(intact).stdout == "CORRECT\n"
    assert "WRONG RESULT" in run_script(removed).stderr


def options(subset: str) -> list[str]:
    """Those of a pytest that runs a part of the emulated tests, whatever their marks are."""
    return ["-q", "-p", "no:cacheprovider", "-W", "default", "-m", "", "-k", subset]


@pytest.mark.parametrize(
    "subset",
    [
        pytest.param(
            "agree and bfloat16 and (2x65x5x7 or 2x34x4x4 or 20x32x4x4 or 5x16x8x8 or 136)"
            " or last_bit or views or entropy or 1-128-2-torch.bfloat16",
            id="some",
        ),
        pytest.param("", id="all", marks=pytest.mark.slow),
    ],
)
def test_clean_under_sanitizers(subset: str) -> None:
    env = {
        **emulator.sanitizer_environment(),
        "FASTCIFAR_EMULATED_LIBRARY": str(emulator.build(emulator.SANITIZED)),
    }
    command = [sys.executable, "-m", "pytest", *options(subset), EMULATED]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@needs_setarch
@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[pytest.mark.slow] * (s in (STREAM_SCRIPT, CLASSIFIER_SCRIPT))) for s in OPS_USED],
)
def test_the_race_detector_sees_planted_races(script: str) -> None:
    """And none in the kernels as they are."""
    planted = {race: edit for race, edit in RACES.items() if SCRIPTS.get(Path(edit[0]).stem, SCRIPT) == script}
    for race, edit in {"": None, **planted}.items():
        edits = {f"cuda/{edit[0]}": edit[1:]} if edit else {}
        library = emulator.build(emulator.RACES, ops=OPS_USED[script], edits=types_of(script) | edits)
        found = races(library, script)
        assert bool(found) == bool(race), (race, found)
        print(f"{race or 'as they are'}: {found} reports")


@needs_setarch
@pytest.mark.parametrize(
    "subset",
    [
        pytest.param(
            "agree and float16 and not bfloat16 and (2x65x5x7 or 20x32x4x4 or 5x16x8x8 or 136) or last_bit",
            id="some",
        ),
        pytest.param("agree or last_bit or entropy or rows", id="all", marks=pytest.mark.slow),
    ],
)
def test_no_data_race(subset: str) -> None:
    """Within a block and, in global memory, between blocks: every op, in fp16, and training_batch in every type."""
    env = {**emulator.race_environment(), "FASTCIFAR_EMULATED_LIBRARY": str(emulator.build(emulator.RACES))}
    command = [*emulator.RACE_COMMAND, "-m", "pytest", *options(subset), EMULATED]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-6000:]
    assert "ThreadSanitizer" not in done.stderr, done.stderr[-6000:]
