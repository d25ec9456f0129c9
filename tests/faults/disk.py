"""What a disk may hold after a power cut: a model of a file system that loses what was not forced to it.

Only what POSIX promises is kept. The content of a file is on the disk from its `fsync` on, and what happened to the
names in a folder from the folder's `fsync` on. Of everything later, nothing, all or a part may be there: the changes
of one folder in their order, those of two folders and the contents of files independently of each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import Call

REMOVE_FOLDER = 0x200  # AT_REMOVEDIR
Tree = dict[str, bytes | None]
"""Path -> content; None for a folder."""


class File:
    """A file: its content now, and on the disk."""

    def __init__(self) -> None:
        self.content, self.durable = b"", b""


class Folder:
    """A folder: its entries now and on the disk, and the changes between the two."""

    def __init__(self) -> None:
        self.entries: dict[str, File | Folder] = {}
        self.durable: dict[str, File | Folder] = {}
        self.changes: list[Callable[[dict[str, File | Folder]], None]] = []

    def change(self, what: Callable[[dict[str, File | Folder]], None]) -> None:
        what(self.entries)
        self.changes.append(what)


class Disk:
    """The folder `root`, to which calls are done one after the other. At first it is empty."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = root, Folder()

    def do(self, call: Call) -> None:
        """Does to the model what the call did to the real folder."""
        if call.path == self._root:
            if call.name == "fsync":
                self._sync(self._top)
            return
        folder, name = self._find(call.path.parent), call.path.name
        assert isinstance(folder, Folder)
        if call.name in ("create", "mkdir") and name not in folder.entries:
            new = File() if call.name == "create" else Folder()
            folder.change(lambda entries: entries.update({name: new}))
        elif call.name == "rename":
            assert call.other.parent == call.path.parent
            folder.change(lambda entries: entries.update({call.other.name: entries.pop(name)}))
        elif call.name in ("unlink", "unlinkat", "rmdir") and name in folder.entries:
            folder.change(lambda entries: entries.pop(name) and None)
        elif call.name in ("empty", "write", "truncate64", "ftruncate64", "truncate", "ftruncate"):
            file = self._find(call.path)
            assert isinstance(file, File)
            size = {"empty": 0, "write": len(file.content)}.get(call.name, call.value)
            file.content = file.content[:size] + call.content
        elif call.name == "fsync":
            self._sync(self._find(call.path))

    def states(self, choose: random.Random) -> Iterator[Tree]:
        """What a power cut may leave now: the worst cases, and some at random."""
        contents: list[Callable[[File], bytes]] = [
            lambda file: file.durable,
            lambda file: file.content,
            lambda file: file.durable[: len(file.content)] + bytes(max(len(file.content) - len(file.durable), 0)),
            lambda file: file.content[: (len(file.durable) + len(file.content)) // 2],
        ]
        for how in contents:
            for share in (0.0, 1.0, None):
                yield self._tree(self._top, "", how, lambda: choose.random() if share is None else share)  # noqa: B023

    def _tree(self, folder: Folder, above: str, how: Callable[[File], bytes], share: Callable[[], float]) -> Tree:
        entries = dict(folder.durable)
        for change in folder.changes[: round(share() * len(folder.changes))]:
            change(entries)
        tree: Tree = {}
        for name, what in entries.items():
            path = f"{above}{name}"
            if isinstance(what, Folder):
                tree |= {path: None, **self._tree(what, f"{path}/", how, share)}
            else:
                tree[path] = how(what)
        return tree

    def _find(self, path: Path) -> File | Folder:
        found: File | Folder = self._top
        for part in path.relative_to(self._root).parts:
            assert isinstance(found, Folder)
            found = found.entries[part]
        return found

    def _sync(self, what: File | Folder) -> None:
        if isinstance(what, File):
            what.durable = what.content
        else:
            what.durable, what.changes = dict(what.entries), []


def write(tree: Tree, root: Path) -> None:
    """Makes the files and folders of `tree` in `root`, which exists."""
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
