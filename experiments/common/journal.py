"""Keep the finished trainings of a run in a file, so that an interrupted run can go on where it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

Result = dict[str, Any]


class Journal:
    """File with a line of JSON for the settings, then one for each finished training.

    Every digit of a float is kept, NaN and inf too. The file is there from the first finished training on, and always whole: a
    new one takes the place of the old.

    Args:
        path: the file; its folder exists. None keeps the results in memory only.
        settings: what the results depend on; trainings of other settings are refused.
        resume: take over the trainings that are there already. Without it they are refused.

    Raises:
        ValueError: the file holds trainings that are not to be taken over, or it is damaged.
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
        """Return the result of a training, which takes so many steps of the progress bar: the one that is kept, or a new one."""
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
        """Remove the file: all is done and written elsewhere."""
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
            whole.unlink(missing_ok=True)  # there only after an interruption, or where the disk is full
        self._size = _size(path)

    def _take(self, line: str) -> None:
        """Read the result from its line, so that what comes back at once is what comes back after ``--resume``."""
        entry = json.loads(line)
        self.results[entry["training"]] = dict(entry["result"])
        self._lines.append(line)

    def _read(self, path: Path, resume: bool) -> None:
        """Take over the trainings of the file; what follows its last line end was cut short, and is run again."""
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
    """Return the bytes of the file, 0 where there is none."""
    return path.stat().st_size if path is not None and path.exists() else 0
