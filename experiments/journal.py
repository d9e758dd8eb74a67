"""The finished trainings of a run, kept in a file, so that an interrupted run can go on where it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

Result = dict[str, Any]
Training = tuple[int, Callable[[], Result]]  # its steps, and what trains


class Journal:
    """A line of JSON with the settings, then one for each finished training.

    Args:
        path: the file; its folder exists.
        settings: what the results depend on; a journal of other settings is refused.
        resume: go on with the file if it is there. Without it, a file that is there is refused and not overwritten.

    Raises:
        ValueError: the file is of other settings, is no journal, or is there and ``resume`` is not asked for.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        first = json.dumps(settings) + "\n"
        if not path.exists():
            path.write_text(first, encoding="utf-8")
            return
        if not resume:
            raise ValueError(f"{path} holds the finished trainings of an interrupted run: add --resume, or remove it")
        header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        if header != first:
            raise ValueError(f"--resume needs the options of the interrupted run, and {path} was written with others")
        if lines and not lines[-1].endswith("\n"):  # the program was killed while it wrote
            path.write_text("".join([header, *lines[:-1]]), encoding="utf-8")
            del lines[-1]
        for line in lines:
            entry = json.loads(line)
            self.results[entry["training"]] = entry["result"]

    def add(self, training: str, result: Result) -> None:
        """Keep the result of a training."""
        self.results[training] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"training": training, "result": result}) + "\n")

    def remove(self) -> None:
        """All is done and written elsewhere."""
        self.path.unlink()


def train_all(trainings: Mapping[str, Training], journal: Journal) -> list[Result]:
    """Run the trainings that are not in the journal yet; the results of all, or of those before a Ctrl-C, in their order."""
    with tqdm(total=sum(steps for steps, _ in trainings.values()), unit="step", mininterval=0.5) as progress:
        try:
            for name, (steps, train) in trainings.items():
                progress.set_description(name)
                if name not in journal.results:
                    journal.add(name, train())
                progress.update(steps)
        except KeyboardInterrupt:
            pass
    return [journal.results[name] for name in trainings if name in journal.results]
