"""The unpickler refuses everything that is damaged or hostile."""

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import SPLITS, load, same
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import pickles
from fastcifar.data.cifar_files import VERSIONS, read_published
from fastcifar.errors import DataError


class _Payload:
    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("call", [os.system, eval, np.load, getattr, print], ids=lambda call: call.__name__)
def test_pickle_that_calls_something_is_refused(file: str, call: Callable[..., object], tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files[file], encoding="bytes")
    table[b"extra"] = _Payload(call, f"touch {proof}", "x") if call is getattr else _Payload(call, f"touch {proof}")
    files[file] = pickle.dumps(table, protocol=2)
    with pytest.raises(DataError, match=rf"{file} is not a CIFAR pickle: it asks for \S*{call.__name__}, .* not run"):
        load(data_files.write_files(tmp_path / "py", files))
    assert not proof.exists()


def test_dotted_global_does_not_reach_through(tmp_path: Path) -> None:
    """Protocol 4 looks up `a.b.c` in a module. An allowed module must not give access to other attributes."""
    stream = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    files = data_files.python_files(SPLITS) | {"train": stream}
    with pytest.raises(DataError, match=r"asks for numpy\.ndarray\.__class__"):
        load(data_files.write_files(tmp_path / "py", files))


def test_nothing_of_numpy_is_handed_to_a_pickle() -> None:
    """NumPy's own array constructor accepts any shape and state; the stand-ins only keep them."""
    assert all(item.__module__ == "fastcifar.data.pickles" for item in pickles._Unpickler._ALLOWED.values())


@pytest.mark.parametrize("target", list(pickles._Unpickler._ALLOWED), ids=".".join)
@pytest.mark.parametrize("state", [b"}\x8c\x05statesK\x01s", b"N}\x8c\x05statesK\x01s\x86"], ids=["dict", "slots"])
def test_pickle_cannot_set_attributes_of_the_stand_ins(target: tuple[str, str], state: bytes) -> None:
    stream = b"\x80\x04c" + "\n".join(target).encode() + b"\n" + state + b"b."
    before = dict(vars(pickles._Unpickler._ALLOWED[target]))
    with pytest.raises(DataError, match="not a CIFAR pickle"):
        pickles.unpickle(stream, "x")
    assert dict(vars(pickles._Unpickler._ALLOWED[target])) == before


def test_one_damaged_number_takes_no_memory() -> None:
    """One flipped bit makes a memo index of 64 Mi, for which the unpickler in C takes a gigabyte."""
    tracemalloc.start()
    try:
        pickles.unpickle(b"\x80\x02}r\x00\x00\x00\x04.", "x")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


PICKLES = data_files.python_files(data_files.make_splits(2, per_class=1))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_pickle_is_a_data_error_or_data(data: st.DataObject) -> None:
    """A pickle that is cut or has a flipped bit is read, or is refused with DataError, and no other error is raised."""
    name = data.draw(st.sampled_from(["train", "meta"]))
    content = bytearray(PICKLES[name])
    end = len(content)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, end - 1))]
    else:
        where = data.draw(st.one_of(st.integers(0, end - 1), st.integers(0, min(1200, end - 1))))
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    version = VERSIONS[0]
    try:
        read_published(version, PICKLES | {name: bytes(content)}, Path("here"))
    except DataError as error:
        assert str(error).startswith("here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"fine_labels": [0] * 199}, "'fine_labels' is not a list of 200 whole numbers"),
        ({b"fine_labels": ["a"] * 200}, "'fine_labels' is not a list of 200 whole numbers"),
        ({b"fine_labels": [100] * 200}, "label 100 in the train split; allowed: 0 to 99"),
        ({b"fine_labels": [-1] * 200}, "label out of range"),
        ({b"data": np.zeros((200, 3071), np.uint8)}, r"\(200, 3071\) u1, not N x 3072 bytes"),
        ({b"data": np.zeros((200, 3072), np.int16)}, r"i2, not N x 3072 bytes"),
        ({b"data": b"abc"}, "no array under the key 'data'"),
    ],
)
def test_wrong_content_of_a_pickle(change: dict[bytes, Any], message: str, tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files["train"], encoding="bytes") | change
    with pytest.raises(DataError, match=message):
        load(data_files.write_files(tmp_path / "py", files | {"train": data_files.python2_pickle(table)}))


# ---------------------------------------------------------------------------------------------------- written anew


def numpy_numbers(labels: list[int]) -> Any:
    return list(np.array(labels))


REWRITTEN: dict[str, tuple[int, Callable[[list[int]], Any], Callable[[Any], Any]]] = {
    "the newest protocol": (5, list, np.ascontiguousarray),
    "rows by column, protocol 5": (5, list, np.asfortranarray),
    "rows by column, protocol 4": (4, list, np.asfortranarray),
    "labels as an array": (4, np.array, np.ascontiguousarray),
    "labels as an array, protocol 5": (5, np.array, np.ascontiguousarray),
    "labels as bytes": (5, lambda labels: np.array(labels, np.uint8), np.ascontiguousarray),
    "labels of the other byte order": (4, lambda labels: np.array(labels, ">i4"), np.ascontiguousarray),
    "labels as numbers of NumPy": (4, numpy_numbers, np.ascontiguousarray),
    "labels as numbers of NumPy, protocol 2": (2, numpy_numbers, np.ascontiguousarray),
    "labels as a tuple": (4, tuple, np.ascontiguousarray),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_pickles_written_anew(case: str, tmp_path: Path) -> None:
    """Files that people wrote anew, with changed labels, in any pickle protocol and with other types."""
    protocol, labels, rows = REWRITTEN[case]
    files = data_files.python_files(SPLITS)
    expected = load(data_files.write_files(tmp_path / "as published", files))
    for name in ("train", "test"):
        table = pickle.loads(files[name], encoding="bytes")
        for key in (b"fine_labels", b"coarse_labels"):
            table[key] = labels(table[key])
        table[b"data"] = rows(table[b"data"])
        files[name] = pickle.dumps(table, protocol=protocol)
    assert same(load(data_files.write_files(tmp_path / "py", files)), expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((200, 1), int), "'fine_labels' is not a list of 200 whole numbers"),
        (np.zeros(200), "'fine_labels' is not a list of 200 whole numbers"),
        (np.zeros(199, int), "'fine_labels' is not a list of 200 whole numbers"),
        (list(np.zeros(200)), "NumPy number that is no whole number"),
        ([2**40] + [0] * 199, f"'fine_labels' holds a label out of range: {2**40}"),
        (np.full(200, -3), "'fine_labels' holds a label out of range: -3"),
    ],
)
def test_labels_that_are_no_whole_numbers(labels: Any, message: str, tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files["train"], encoding="bytes") | {b"fine_labels": labels}
    with pytest.raises(DataError, match=message):
        load(data_files.write_files(tmp_path / "py", files | {"train": pickle.dumps(table, protocol=4)}))


def test_changed_labels_contradict_the_superclasses_and_the_way_out_is_told(tmp_path: Path) -> None:
    """As in CIFAR-100N: noisy fine labels in the published files, with the coarse labels unchanged."""
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files["train"], encoding="bytes")
    table[b"fine_labels"] = [(label + 1) % 100 for label in table[b"fine_labels"]]
    with pytest.raises(DataError, match=r"lie in several superclasses.*CIFAR-100N.*make an \.npz of it: np\.savez"):
        load(data_files.write_files(tmp_path / "py", files | {"train": pickle.dumps(table, protocol=4)}))


def test_pickles_of_something_else_are_told_in_short(tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    for number, (table, message) in enumerate(
        [
            ({f"key {i}": i for i in range(10_000)}, "no array under the key 'data'; found 'key 0', .* and 9,992 more"),
            ([1, 2], "it holds a list, not a dict"),
            ({"data": _Payload(os.system, "x" * 10_000)}, r"asks for \S*system, .* make an \.npz of it"),
        ]
    ):
        with pytest.raises(DataError, match=message) as error:
            folder = tmp_path / str(number)
            load(data_files.write_files(folder, files | {"train": pickle.dumps(table)}), tmp_path / "cache")
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\x1f\x8b\x08\0junk", "a gzip file"), (b"<html>Sign in</html>", "a web page"), (b"%PDF-1.7", "a PDF file")],
)
def test_a_file_of_another_kind_is_named(content: bytes, kind: str) -> None:
    """The bug: KeyError: 31."""
    with pytest.raises(DataError, match=f"data is {kind}"):
        pickles.unpickle(content, "data")
