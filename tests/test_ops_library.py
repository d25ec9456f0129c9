"""What holds for all compiled ops together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import CUDA_OPS, DTYPES, as_tuple, calls, end_calls, needs_kernels

import fastcifar
from fastcifar import ops
from fastcifar.ops._library import references

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fastcifar.__file__).parent
PUBLIC = sorted(name for name in references if not name.startswith("_"))
NOT_OPS = {"available", "cpu_isa", "fingerprint", "own_threads", "why_unavailable"}
NOT_OPS |= {"Conversion", "DepthwiseConv3x3", "convert"}


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=PACKAGE, capture_output=True, text=True
    )  # not in the checkout, which Python would import from first


def stems(pattern: str, holds: str = "") -> set[str]:
    """The stems of the files that match a pattern. Only files that contain `holds` count."""
    found = [path for path in ROOT.glob(pattern) if holds in path.read_text()]
    return {path.stem.removesuffix("_op") for path in found}


OPS = {path.stem for path in (ROOT / "fastcifar/ops").glob("[a-z]*.py")} - {"cases"}
CPU_ONLY = set(PUBLIC) - CUDA_OPS
PARTS = [
    ("csrc/*.h", "Schemas[] = {"),
    ("csrc/cpu/*.cpp", "Schemas) m.def(schema);"),
    ("csrc/cuda/*_op.cpp", "Schemas) m.def(schema);"),
    ("csrc/cuda/*.cu", "cudaError_t"),
]


@pytest.mark.parametrize("pattern, holds", PARTS, ids=[pattern for pattern, _ in PARTS])
def test_every_op_has_its_files_and_every_file_its_op(pattern: str, holds: str) -> None:
    assert stems(pattern, holds) == OPS - (CPU_ONLY if "cuda" in pattern else set())


@pytest.mark.parametrize("op", sorted(OPS))
def test_no_op_lacks_a_part(op: str) -> None:
    assert (ROOT / f"tests/test_ops_{op}.py").exists()
    assert (ROOT / f"bench/test_{op}.py").exists()
    assert op in ops.__all__ and callable(getattr(ops, op))
    own = [name for name in references if re.fullmatch(rf"{op}|_{op}(_backward)?(_into)?", name)]
    assert all(references[name].__name__ == f"{name.removeprefix('_')}_ref" for name in own)
    source = (ROOT / f"fastcifar/ops/{op}.py").read_text()
    assert f"def {op}_ref(" in source
    assert re.search(r"[Ee]qual to\b", getattr(ops, op).__doc__)
    header = (ROOT / f"csrc/{op}.h").read_text()
    assert sorted(re.findall(r'^    "(\w+)\(', header, re.M)) == sorted(own), "the schemas of the op's header"
    for folder, ending in (("cpu", ".cpp"), ("cuda", "_op.cpp"))[: 1 if op in CPU_ONLY else 2]:
        glue = (ROOT / f"csrc/{folder}/{op}{ending}").read_text()
        assert sorted(re.findall(r'm\.impl\("(\w+)"', glue)) == sorted(own), f"the kernels in csrc/{folder}"


def test_the_ops_are_those_with_files() -> None:
    assert set(PUBLIC) == OPS == set(ops.__all__) - NOT_OPS


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
@pytest.mark.parametrize("shape", [(40, 129, 5, 7), (33, 3, 16, 16), (9, 64, 8, 8)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        for name, arguments in (*calls(shape, dtype, 1), *end_calls(shape, dtype)):
            op = getattr(torch.ops.fastcifar, name)
            torch.set_num_threads(1)
            one = as_tuple(op(*arguments))
            torch.set_num_threads(3)
            assert all(map(torch.equal, one, as_tuple(op(*arguments)))), name
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
def test_batches_of_none_and_one(dtype: torch.dtype) -> None:
    for n in (0, 1):
        for name, arguments in (*calls((n, 5, 6, 7), dtype, 2), *(end_calls((n, 5, 6, 7), dtype) if n else ())):
            outputs = as_tuple(getattr(torch.ops.fastcifar, name)(*arguments))
            reference = as_tuple(references[name](*arguments))
            for got, expected in zip(outputs, reference, strict=True):
                assert got.shape == expected.shape and got.isfinite().all(), name
                assert n == 1 or torch.equal(got, expected), name


@needs_kernels
@pytest.mark.parametrize(
    "isa", [pytest.param("generic", marks=pytest.mark.slow), "avx2", "avx512", "avx512_bf16", "amx"]
)
def test_each_instruction_set(isa: str) -> None:
    done = run_python(str(ROOT / "tests/op_cases.py"), FASTCIFAR_ISA=isa)
    if done.returncode and f"FASTCIFAR_ISA={isa}: this CPU and this build" in done.stderr:
        pytest.skip(f"this CPU or this build has no {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{isa}\n"


@needs_kernels
def test_an_unknown_instruction_set_is_refused() -> None:
    done = run_python("-c", "from fastcifar import ops; ops.cpu_isa()", FASTCIFAR_ISA="sse9")
    assert done.returncode and "FASTCIFAR_ISA=sse9: this CPU and this build of fastcifar can run" in done.stderr
    assert done.stderr.rstrip().split("\n")[0].count("generic") or "generic" in done.stderr


@pytest.mark.parametrize(
    "isa, library, message",
    [
        ("AVX2", True, "FASTCIFAR_ISA=AVX2: .* generic.*; did you mean avx2?"),
        ("sse9", False, "FASTCIFAR_ISA=sse9: expected one of generic, avx2, avx512, avx512_bf16, amx"),
    ],
    ids=["kernels", "no kernels"],
)
def test_a_wrong_instruction_set_is_told_before_anything_runs(
    tmp_path: Path, isa: str, library: bool, message: str
) -> None:
    """`train` ends with one line and leaves no folder, also if no op is needed; `doctor` says it too."""
    if library and not ops.available():
        pytest.skip("no kernels here")
    package = str(copy_of_package(tmp_path, library))
    train = run_python(
        *"-m fastcifar train --data procedural --engine eager --out".split(),
        str(tmp_path / "run"),
        FASTCIFAR_ISA=isa,
        PYTHONPATH=package,
    )
    assert train.returncode == 2 and re.search(message, train.stderr.splitlines()[-1])
    assert "Traceback" not in train.stderr
    assert not (tmp_path / "run").exists()
    if library:
        doctor = run_python("-m", "fastcifar", "doctor", FASTCIFAR_ISA=isa, PYTHONPATH=package)
        assert re.search(message, doctor.stdout) and "Traceback" not in doctor.stderr


def copy_of_package(folder: Path, library: bool) -> Path:
    """`fastcifar/` with its Python sources, with or without the compiled ops."""
    for path in PACKAGE.rglob("*.py"):
        copy = folder / "fastcifar" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for path in PACKAGE.glob("_C*.so") if library else ():
        (folder / "fastcifar" / path.name).symlink_to(path)
    return folder


WITHOUT_KERNELS = """
import warnings
import torch
from fastcifar import ops
assert not ops.available() and "_C is not built" in ops.why_unavailable(), ops.why_unavailable()
assert ops.cpu_isa() is None
u = torch.randn(2, 4, 6, 6, requires_grad=True)
ones, zeros, w = torch.ones(4), torch.zeros(4), torch.randn(4, 1, 3, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        z, *_ = ops.depthwise_block(u, ones, zeros, w, ones, zeros, 1e-5, 2)
        z.sum().backward()
        ops.dwconv3x3(u, w, 1)
assert [str(w.message) for w in caught if "fastcifar" in str(w.message)] == [
    "fastcifar's ops run on their plain PyTorch references on cpu, correct but slower: " + ops.why_unavailable()
], caught
assert u.grad is not None and w.grad.abs().sum() > 0
"""


def test_without_kernels_the_references_take_over_and_say_so(tmp_path: Path) -> None:
    done = run_python("-c", WITHOUT_KERNELS, PYTHONPATH=str(copy_of_package(tmp_path, library=False)))
    assert done.returncode == 0, done.stderr


@needs_kernels
def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    package = copy_of_package(tmp_path, library=True)
    module = package / "fastcifar/ops/dwconv3x3.py"
    module.write_text(
        module.read_text().replace('"dwconv3x3(Tensor x, Tensor w, int stride)', '"dwconv3x3(Tensor x, Tensor w)')
    )
    done = run_python("-c", "from fastcifar import ops", PYTHONPATH=str(package))
    assert done.returncode and "the compiled extension is of another version" in done.stderr
    command = ("train", "--data", "procedural", "--out", str(tmp_path / "run"))
    done = run_python("-m", "fastcifar", *command, PYTHONPATH=str(package))
    assert done.returncode == 1 and "(dwconv3x3 differs); build it again" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fastcifar: the compiled") and "Traceback" not in done.stderr


@needs_kernels
def test_no_graph_break_and_the_same_gradients_when_compiled() -> None:
    def network(u, w, gamma, beta):  # type: ignore[no-untyped-def]
        z, *_ = ops.depthwise_block(u * 2, gamma, beta, w, gamma, beta, 1e-5, 2)
        x, *_ = ops.batch_norm_relu(ops.dwconv3x3(z, w, 1), gamma, beta, 1e-5)
        return x.mean((2, 3)).square().sum()

    torch.manual_seed(0)
    inputs = [torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.rand(8) + 0.5, torch.rand(8)]
    inputs = [x.requires_grad_() for x in inputs]
    expected = network(*inputs)
    got = torch.compile(network, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs))
