"""The products of separable_block and of the stem for processors that this machine may not be, emulated."""

import subprocess
from pathlib import Path

import pytest

from fastcifar import ops

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-Og", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas", "-ffp-contract=fast"]

pytestmark = pytest.mark.skipif(not ops.available(), reason=f"no C++ compiler: {ops.why_unavailable()}")


def run(folder: Path, edit: tuple[str, str, str] | None = None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Compiles the kernels for the emulator, with one text of a file in csrc/cpu/ replaced, and runs them."""
    sources = ROOT / "csrc"
    if edit:
        name, old, new = edit
        sources = folder / "csrc"
        (sources / "cpu").mkdir(parents=True)
        for path in [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cpu").iterdir()]:
            text = path.read_text()
            if path.name == name:
                assert old in text, f"{name} no longer has the text to break: {old}"
                text = text.replace(old, new)
            (sources / path.relative_to(ROOT / "csrc")).write_text(text)
    program = folder / "products"
    command = ["g++", *FLAGS, f"-I{sources}", str(ROOT / "tests/emu/products.cpp"), "-o", str(program)]
    subprocess.run(command, check=True)
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.sanitized
def test_products_in_pairs_and_tiles_are_right(tmp_path: Path) -> None:
    done = run(tmp_path, None, "all")
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout
    assert done.stdout.count("tiles") == 38 and done.stdout.count("\n") == 84


# bug -> file, what it says, what it says with the bug
PLANTED = {
    "wrong rows": ("product.h", "tile_multiply<1, 4, 7>()", "tile_multiply<1, 5, 7>()"),
    "what is beyond the channels": (
        "product_factors.h",
        "memset(first + i * pitch + rest, 0, (2 * num_steps<Number>(channels) - channels) * sizeof(bf16));",
        "",
    ),
    "what is beyond the pixels": ("separable_block_kernel.cpp", "c == 0 && i < rows", "c < 0 && i < rows"),
    "pairs of vectors the wrong way round": ("lines.h", "lane % 2 * n + lane / 2", "(1 - lane % 2) * n + lane / 2"),
    "a wrong transposition": ("product.h", "kLanes + lane - distance", "kLanes + lane"),
    "another part's pixels": ("separable_block_kernel.cpp", "(at.row - pass.first_of_factors)", "(at.row - at.row)"),
    "pivots that change amid a sum": (
        "separable_block_kernel.cpp",
        "if (at.row == pass.first) {",
        "if (at.row >= pass.first) {",
    ),
    "a panel that is written before it is used": (
        "product_factors.h",
        "panel % 2 * product_size",
        "0 * panel",
    ),
    "a tile that is filled before it is multiplied": ("product_factors.h", "tile % 2 * left_size", "0 * tile"),
    "rows of a panel that nobody uses": (
        "separable_block_kernel.cpp",
        "(end - first + steps - 1) / steps",
        "(end - first) / steps",
    ),
    "pairs of a line the wrong way round": ("lines.h", "lane % 2 * n + lane / 4)", "(1 - lane % 2) * n + lane / 4)"),
    "even places for odd ones": (
        "lines.h",
        "bits << 16), reinterpret_cast<Vec>(bits & 0xffff0000u)",
        "bits & 0xffff0000u), Vec(bits << 16)",
    ),
    "a product of parts that is left out": ("product.h", "{0, kKept}, {kKept, 2}", "{0, kKept}, {kKept, 1}"),
    "parts that do not add up": ("product.h", "      v -= of[i];\n", ""),
    "pairs of parts the wrong way round": (
        "product.h",
        "first) >> 16 | reinterpret_cast<VecBits>(second)",
        "second) >> 16 | reinterpret_cast<VecBits>(first)",
    ),
    "the smallest parts beyond the pixels": (
        "separable_block_kernel.cpp",
        "0, pitch * sizeof(Number)",
        "0, num_steps<Number>(p.m) * sizeof(Number)",
    ),
    "the largest parts for the smallest": (
        "product_factors.h",
        "(c * kParts + part) * steps",
        "(c * kParts + kParts - 1 - part) * steps",
    ),
    "the image's channels for its columns": ("stem_tiles.h", "column = t % kStemRow / 3", "column = t % 3"),
    "windows of a chunk that is not the next one": ("stem_tiles.h", "std::swap(now, next);", ""),
    "chunks that overwrite the sums of others": ("stem_tiles.h", "chunks = 0, add = true;", "chunks = 0;"),
    "a pixel beyond the row": ("stem_tiles.h", "if (x + 1 < pixels) second", "if (x < pixels) second"),
    "pairs of taps the wrong way round": (
        "stem_tiles.h",
        "tap(2 * i, c), tap(2 * i + 1, c)",
        "tap(2 * i + 1, c), tap(2 * i, c)",
    ),
}


@pytest.mark.parametrize("edit", PLANTED.values(), ids=PLANTED)
@pytest.mark.sanitized
def test_planted_bugs_are_found(tmp_path: Path, edit: tuple[str, str, str]) -> None:
    assert "WRONG" in run(tmp_path, edit).stdout
