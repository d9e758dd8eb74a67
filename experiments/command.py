"""The command line that experiments with many trainings share."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .heavy_tails import INTERRUPTED
from .journal import Journal, Result, Training, train_all


@dataclass(frozen=True)
class Plan:
    """An experiment of many trainings.

    Attributes:
        settings: all that the results depend on.
        trainings: by name, in their order.
        write: takes the results, whether they are all, and a folder; writes csv, json and png there and returns the table.
    """

    settings: dict[str, Any]
    trainings: Mapping[str, Training]
    write: Callable[[list[Result], bool, Path], str]


def command(
    name: str, words: str | None, make_plan: Callable[..., Plan], quick: Mapping[str, Any], arguments: Sequence[str]
) -> int:
    """Read the options, train, write, print the table; 130 after an interruption, else 0.

    An interruption from the keyboard ends it early: the trainings that were done are written, and kept for ``--resume``.

    Args:
        name: of the experiment; its files are called after it.
        words: what ``--help`` says.
        make_plan: takes ``seed`` and ``seeds`` if given, and what ``quick`` holds; raises ValueError where they are wrong.
        quick: what ``--quick`` changes.
        arguments: of the command line.
    """
    parser = _parser(name, words)
    options = vars(parser.parse_args(arguments))
    folder, is_quick, resume = (options.pop(option) for option in ("out", "quick", "resume"))
    if resume and is_quick and folder is None:
        parser.error("resume needs out where quick is given: the folder of the interrupted run")
    given = {option: value for option, value in options.items() if value is not None}
    try:
        plan = make_plan(**{**(quick if is_quick else {}), **given})
        folder = folder or Path(tempfile.mkdtemp(prefix=f"{name}-") if is_quick else "figures")
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder / f"{name}.partial.jsonl", plan.settings, resume)
    except OSError as error:
        parser.error(f"out must be a folder that can be written, got {str(folder)!r} ({error.strerror})")
    except ValueError as error:
        parser.error(str(error))
    results = train_all(plan.trainings, journal)
    if not results:
        journal.remove()
        print("Interrupted before the first training was done: nothing was written.", file=sys.stderr)
        return INTERRUPTED
    whole = len(results) == len(plan.trainings)
    print(plan.write(results, whole, folder))
    print(f"Written: {name}.csv, {name}.json and {name}.png in {folder}")
    if whole:
        journal.remove()
        return 0
    print(f"Interrupted: the files hold the trainings that were done; --resume --out {folder} goes on with the others.")
    return INTERRUPTED


def _parser(name: str, words: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {name}", description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less than a minute, written to a temporary folder unless --out names another")
    add("--resume", action="store_true", help="go on with an interrupted run of the same options")
    add("--seed", type=int, help="the first seed (default: 0)")
    add("--seeds", type=int, help="how many seeds (default: 3; with --quick fewer)")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default: figures)")
    return parser
