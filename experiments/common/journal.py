"""Keep the finished trainings of a run in a file, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

Result = dict[str, Any]


class Journal:
    """File with a line of JSON for the settings, then one for each finished training.

    Floats keep every digit, NaN and inf too. The file exists once the first training is finished, and is always complete: a
    new file replaces the old one.

    Args:
        path: the file; its folder exists. None keeps the results in memory only.
        settings: the settings that the results depend on; trainings with other settings raise ValueError.
        resume: use the trainings in an existing file. Without ``resume`` such trainings raise ValueError.

    Raises:
        ValueError: the file holds trainings that must not be used, or it is damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self.progress: tqdm[Any] = tqdm(disable=True)
        self._lines = [json.dumps({"settings": settings})]
        self._size = _size(path)
        if path is not None and path.exists():
            self._read(path, resume)

    def done(self, training: str, steps: int, train: Callable[[], Result]) -> Result:
        """Return the kept result of a training, or run it; either way advance the progress bar by ``steps``."""
        self.progress.set_description(training)
        end = self.progress.n + steps
        if training not in self.results:
            line = json.dumps({"training": training, "result": train()})
            if self.path is not None:
                self._keep(self.path, line)
            self._take(line)
        self.progress.update(end - self.progress.n)
        return self.results[training]

    def remove(self) -> None:
        """Remove the file, once all results are written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _keep(self, path: Path, line: str) -> None:
        if _size(path) > self._size:
            raise ValueError(f"{path} must be written by one run at a time, and another one has added trainings to it")
        lines, whole = [*self._lines, line], path.with_suffix(".tmp")
        try:
            whole.write_text("\n".join([*lines, ""]), encoding="utf-8")
            whole.replace(path)
        finally:
            whole.unlink(missing_ok=True)  # it exists only after an interruption or on a full disk
        self._size = _size(path)

    def _take(self, line: str) -> None:
        """Read the result back from its line, so that it is the same now and after ``--resume``."""
        entry = json.loads(line)
        self.results[entry["training"]] = dict(entry["result"])
        self._lines.append(line)

    def _read(self, path: Path, resume: bool) -> None:
        """Read the trainings of the file; an incomplete last line is dropped, and its training runs again."""
        mine = json.loads(self._lines[0])["settings"]
        try:
            first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or self._lines
            theirs = dict(json.loads(first)["settings"])
            for line in lines:
                self._take(line)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} must hold finished trainings or be removed, and it is damaged: {error!r}") from None
        if not lines:
            return
        if not resume:
            raise ValueError(f"{path} holds {len(lines)} trainings of an interrupted run: add --resume, or remove it")
        different = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
        if different:
            pairs = [f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}" for name in different]
            raise ValueError(f"--resume needs the settings of {path}: {'; '.join(pairs)}")


def _size(path: Path | None) -> int:
    """Return the size of the file in bytes, 0 if there is none."""
    return path.stat().st_size if path is not None and path.exists() else 0
