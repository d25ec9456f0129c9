"""Files that fastcifar does not read: what each is, recognised by its first bytes, and what to do with it."""

from collections.abc import Sequence

from fastcifar.data.accepted import SAVE_AS_NPZ

_CONVERT = f"read it with the program that wrote it, and {SAVE_AS_NPZ}"
_KINDS = (  # the first bytes, what the file is, what to do
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _CONVERT),
    (b"MATLAB 7.3 MAT-file", "a MATLAB file", _CONVERT),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", _CONVERT),
    (b"ARROW1", "an Arrow file", "let its name end in .arrow"),
    (b"SQLite format 3\0", "an SQLite database", _CONVERT),
    (b"\x93NUMPY", "a single NumPy array", f"images and labels of both splits belong in one .npz: {SAVE_AS_NPZ}"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch the file with git lfs pull"),
    (b"\x1f\x8b", "a gzip file that holds no tar archive", "unpack it with gunzip, and name what comes out"),
    (b"\xfd7zXZ\0", "an xz file that holds no tar archive", "unpack it with unxz, and name what comes out"),
    (b"BZh", "a bzip2 file that holds no tar archive", "unpack it with bunzip2, and name what comes out"),
    (b"(\xb5/\xfd", "a Zstandard file", "unpack it with zstd -d, and name what comes out"),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive", "unpack it, and name the folder"),
    (b"Rar!", "a RAR archive", "unpack it, and name the folder"),
    (b"\x89PNG", "a single picture", "name the folder that holds train/ and test/"),
    (b"\xff\xd8\xff", "a single picture", "name the folder that holds train/ and test/"),
    (b"%PDF", "a PDF file", "name the images themselves"),
    (b"PK\x03\x04", "a zip archive that is cut short", "download or copy it again"),
    (b"\x80\x02", "a pickle", f"a pickle can run anything, so that only CIFAR's own are read: {SAVE_AS_NPZ}"),
    (b"\x80\x03", "a pickle", f"a pickle can run anything, so that only CIFAR's own are read: {SAVE_AS_NPZ}"),
    (b"\x80\x04", "a pickle", f"a pickle can run anything, so that only CIFAR's own are read: {SAVE_AS_NPZ}"),
    (b"\x80\x05", "a pickle", f"a pickle can run anything, so that only CIFAR's own are read: {SAVE_AS_NPZ}"),
)


def foreign_kind(start: bytes) -> tuple[str, str] | None:
    """Recognises a file that no decoder reads.

    Args:
        start: the first bytes of the file; 512 are enough.

    Returns:
        What the file is and what to do with it, such as `("a RAR archive", "unpack it, and name the folder")`; None if
        the bytes do not tell.
    """
    if not start:
        return "empty", "download or copy it again"
    for magic, kind, advice in _KINDS:
        if start.startswith(magic):
            return kind, advice
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or start.lstrip()[:5].lower() == b"<html":
        return "a web page, not the file that was meant", "download the file itself"
    return None


def foreign_zip(names: Sequence[str]) -> tuple[str, str] | None:
    """Recognises a zip file that is not an .npz.

    Args:
        names: the names of its members.

    Returns:
        As for `foreign_kind`; None if a member is an array.
    """
    if any(name.endswith(".npy") for name in names):
        return None
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "a PyTorch file", f"load it with torch.load, and {SAVE_AS_NPZ}"
    if "[Content_Types].xml" in names:
        return "an Office document", _CONVERT
    return "a zip archive of other files", "unpack it (unzip FILE), and name the folder that comes out"
