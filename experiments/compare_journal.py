"""The file in which ``compare`` keeps its finished trainings until all are done."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare_training import Training


class Journal:
    """One line with the settings, then one for each finished training; Python's JSON keeps every digit of a float.

    Args:
        path: where it is, or will be after the first training.
        settings: all that the trainings depend on.
        resume: whether trainings that are there already are taken over; nothing is lost where they are not.

    Raises:
        ValueError: the file holds trainings and ``resume`` is False, or they belong to other settings, or it is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        self._trainings: dict[tuple[str, float, int], Training] = {}
        if path.exists():
            self._read()
        if self._trainings and not resume:
            count = len(self._trainings)
            raise ValueError(f"resume must be given, or {path} removed: it keeps {count} trainings of an interrupted run")
        if path.exists():
            self._rewrite()

    def __len__(self) -> int:
        return len(self._trainings)

    def find(self, method: str, lr: float, seed: int) -> Training | None:
        """The finished training, None if there is none."""
        return self._trainings.get((method, lr, seed))

    def add(self, training: Training) -> None:
        """Keep it."""
        self._trainings[training.method, training.lr, training.seed] = training
        if len(self) == 1:
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(asdict(training)))

    def remove(self) -> None:
        """All is done and written elsewhere."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """What follows the last line end is a training whose writing was cut short: it is run again."""
        first, *lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if not lines:
            return
        try:
            theirs = json.loads(first)["settings"]
            records = [json.loads(line) for line in lines]
            trainings = [Training(**record | {"points": [tuple(x) for x in record["points"]]}) for record in records]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"resume must find trainings as compare writes them in {self.path}, got {error!r}") from None
        different = [name for name in {**theirs, **self._settings} if theirs.get(name) != self._settings.get(name)]
        if different:
            pairs = [f"{name} was {theirs.get(name)!r} and is {self._settings.get(name)!r}" for name in different]
            raise ValueError(f"resume must have the settings of {self.path} (or remove that file): {'; '.join(pairs)}")
        self._trainings = {(one.method, one.lr, one.seed): one for one in trainings}

    def _rewrite(self) -> None:
        """What is there stays there until the new file is complete."""
        whole = self.path.with_suffix(".tmp")
        lines = [{"settings": self._settings}, *map(asdict, self._trainings.values())]
        whole.write_text("".join(map(_line, lines)), encoding="utf-8")
        whole.replace(self.path)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content) + "\n"
