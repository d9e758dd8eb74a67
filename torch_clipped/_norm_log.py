"""Csv file of a :class:`torch_clipped.NormRecorder`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["COLUMNS", "NormLog", "Row"]

COLUMNS = ("steps", "clipped_steps", "skipped_steps", "grad_norm", "clipped_norm", "threshold", "coefficient")
_HEADER = f"{','.join(COLUMNS)}\n".encode()
Row = tuple[float, ...]


class NormLog:
    """Csv file to which rows are appended. An incomplete last line, left by a killed process, is not read.

    Args:
        path: the path of the file, in an existing folder.
        resume: whether to continue an existing file.

    Raises:
        ValueError: the file exists and ``resume`` is False, the file was not written by this class, or the folder is missing.
    """

    def __init__(self, path: str | Path, resume: bool) -> None:
        self.path = Path(path).absolute()  # the working directory may change
        self._process = os.getpid()
        if not self.path.parent.is_dir():
            raise ValueError(f"path must be in a folder that exists, but there is no {str(self.path.parent)!r}")
        if self.path.is_dir():
            raise ValueError(f"path must be a file, but {str(self.path)!r} is a folder")
        if not self.path.exists():
            with open(self.path, "xb") as file:
                file.write(_HEADER)
        elif resume:
            self._keep(len(self.read()))
        else:
            raise ValueError(f"path must be a new file unless resume=True, but there is {str(self.path)!r}")

    def read(self) -> list[Row]:
        """Return the rows."""
        return self._parsed(self.path.read_bytes())

    def append(self, rows: Iterable[Row]) -> None:
        """Write more rows; a fork of the process that made this object does not write."""
        if os.getpid() != self._process:
            return
        lines = (",".join([*(str(int(count)) for count in row[:3]), *map(repr, row[3:])]) for row in rows)
        with open(self.path, "r+b") as file:  # a removed file is not made again
            file.seek(0, os.SEEK_END)
            file.write("".join(f"{line}\n" for line in lines).encode())

    def cut(self, counts: Row) -> None:
        """Remove the rows that are later than these counts of steps."""
        self._keep(max((i for i, row in enumerate(self.read(), 1) if row[0] <= counts[0] and row[2] <= counts[2]), default=0))

    def _keep(self, count: int) -> None:
        """Keep only the first rows, with a complete line of names before them."""
        with open(self.path, "r+b") as file:
            kept = b"".join(file.read().splitlines(keepends=True)[: 1 + count])
            file.truncate(len(kept) if count else 0)
            if not count:
                file.seek(0)
                file.write(_HEADER)

    def _parsed(self, content: bytes) -> list[Row]:
        wrong = f"path must be a file of a NormRecorder, but {str(self.path)!r}"
        if _HEADER.startswith(content):
            return []
        first, *lines = content.splitlines(keepends=True)
        if first.rstrip() != _HEADER.rstrip():
            raise ValueError(f"{wrong} does not begin with {','.join(COLUMNS)}")
        rows: list[Row] = []
        for number, line in enumerate(lines, 2):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(tuple(map(float, line.split(b","))))
            except ValueError as error:
                raise ValueError(f"{wrong} holds something else in line {number}: {error}") from None
            if len(rows[-1]) != len(COLUMNS):
                raise ValueError(f"{wrong} has another number of values in line {number}")
        return rows
