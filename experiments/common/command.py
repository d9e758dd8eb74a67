"""Command line that all experiments share: plan, options, and results of interrupted runs."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .journal import Journal, Result
from .machine import versions

TUNING_SEED = 1000  # used only by trainings that choose learning rates
LARGEST = 2**62  # of the integers among the options
INTERRUPTED = 130  # exit code of a program that was ended by Ctrl-C
RESULTS, FIGURES = Path("results"), Path("figures")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Trainings or other parts of an experiment, which run one after another, and the function that writes their results.

    Attributes:
        name: name of the files, without their endings.
        settings: all settings that affect the results, except package versions and the number of threads.
        steps: number of steps of all trainings together.
        train: runs the trainings, each through ``Journal.done``.
        write: takes the results in their order and a folder; writes csv, json and png there and returns the table.
        writes_parts: whether ``write`` accepts an incomplete list of results.
        choices: options that select a result with files of its own.
        resumes: whether an interrupted run can be resumed; if not, no result is kept for it.
    """

    name: str
    settings: dict[str, Any]
    steps: int
    train: Callable[[Journal], None]
    write: Callable[[list[Result], Path], str]
    writes_parts: bool = True
    choices: tuple[str, ...] = ()
    resumes: bool = True


def command(
    parser: argparse.ArgumentParser, make_plan: Callable[..., Plan], quick: Mapping[str, Any], arguments: Sequence[str]
) -> int:
    """Read the options, train, write, print the table; return 130 after an interruption, else 0.

    Ctrl-C ends the run early: finished trainings are kept for ``--resume``, and their results are written as NAME.partial.*.

    Args:
        parser: a parser of :func:`parser_of` with the options of the experiment, which have no defaults.
        make_plan: takes the options that were given, and those of ``quick``; raises ValueError if one is invalid.
        quick: options that ``--quick`` sets.
        arguments: command-line arguments.
    """
    options = vars(parser.parse_args(arguments))
    out, is_quick, resume = (options.pop(option) for option in ("out", "quick", "resume"))
    given = {option: value for option, value in options.items() if value is not None}
    try:
        plan = make_plan(**{**(quick if is_quick else {}), **given})
        if resume and not plan.resumes:
            raise ValueError(f"resume is not supported: {plan.name} measures one process from its start to its end")
        changed = [f"--{name.replace('_', '-')}" for name in given if name not in plan.choices]
        folder = out_folder(out, ["--quick"] * is_quick + changed)
        settings = plan.settings | {"versions": versions(), "threads": torch.get_num_threads()}  # their number changes rounding
        journal = Journal(folder / f"{plan.name}.partial.jsonl" if plan.resumes else None, settings, resume)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # data may take seconds to load
        print("Interrupted, nothing was finished.", file=sys.stderr)
        return INTERRUPTED
    try:
        with tqdm(total=plan.steps, unit="step", mininterval=0.5, disable=None) as journal.progress:
            plan.train(journal)
        _write(plan, journal, folder, partial=False)
    except KeyboardInterrupt:
        print(f"Interrupted, {_kept(plan, journal, folder)}.", file=sys.stderr)
    except Exception:  # damaged data, a full disk, no memory: the traceback follows
        print(f"Ended by an error, {_kept(plan, journal, folder)}.", file=sys.stderr)
        raise
    else:
        journal.remove()
        return 0
    if journal.results and plan.writes_parts:
        _write(plan, journal, folder, partial=True)
    return INTERRUPTED


def _write(plan: Plan, journal: Journal, folder: Path, partial: bool) -> None:
    with publishing(folder, partial) as new:
        print(plan.write(list(journal.results.values()), new))


@contextmanager
def publishing(folder: Path, partial: bool = False) -> Iterator[Path]:
    """Yield a new folder to write into, then move its files to ``folder`` and print their names.

    A partial result never replaces a complete one: it goes to NAME.partial.*, which the next complete result removes. If
    writing is interrupted or fails, the files written so far go to NAME.partial.* too.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as new:
        try:
            yield Path(new)
        except BaseException:
            _move(Path(new), folder, partial=True)
            raise
        _move(Path(new), folder, partial)


def _move(new: Path, folder: Path, partial: bool) -> None:
    names = []
    for path in sorted(new.iterdir()):
        beside = folder / f"{path.stem}.partial{path.suffix}"
        names.append(path.replace(beside if partial else folder / path.name).name)
        if not partial:
            beside.unlink(missing_ok=True)
    if names:
        print(f"Written: {', '.join(names)} in {folder}")


def out_folder(out: Path | None, changes: Sequence[str]) -> Path:
    """Make and return the folder to write into: ``out``, else results, or results/quick for quick runs.

    Args:
        out: the folder given by ``--out``.
        changes: the options that were given, except those that select a result.

    Raises:
        ValueError: the folder cannot be written, or it is figures and the settings are not the defaults.
    """
    if out is None:
        return made(RESULTS / "quick" if "--quick" in changes else RESULTS)
    if changes and out.resolve() in (FIGURES.resolve(), Path(__file__).resolve().parents[2] / FIGURES):
        words = f"where {', '.join(changes)} is given: {FIGURES} holds results of the default settings"
        raise ValueError(f"out must name another folder {words}")
    return made(out)


def _kept(plan: Plan, journal: Journal, folder: Path) -> str:
    """Return which results were kept, and how to resume."""
    if not journal.results:
        return "nothing was finished"
    if not plan.resumes:
        return f"{len(journal.results)} parts were finished"
    how = f"to continue, run the same command with --resume --out {shlex.quote(str(folder))}"
    return f"{len(journal.results)} finished trainings are kept in {journal.path}: {how}"


def parser_of(name: str, words: str | None, start: str = "python") -> argparse.ArgumentParser:
    """Return a parser with the options that all experiments have; ``words`` is the description in ``--help``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"{start} -m experiments {name}", description=words, formatter_class=raw)
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help=f"where to write (default: {RESULTS}, or {RESULTS}/quick for --quick)")
    add("--quick", action="store_true", help="less than a minute with default data")
    add("--resume", action="store_true", help="continue an interrupted run of the same command")
    return parser


def made(folder: Path, option: str = "out") -> Path:
    """Make the folder if it is missing and return it; raise ValueError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option} must be a folder that can be written, got {str(folder)!r} ({error.strerror})") from None
    return folder


def check_at_least(config: object, smallest: Mapping[str, int]) -> None:
    """Check these attributes by :func:`check_integer`."""
    for name, least in smallest.items():
        check_integer(name, getattr(config, name), least)


def check_integer(name: str, value: int, least: int) -> None:
    """Raise ValueError if an integer is smaller than its bound, or too large for a seed of torch."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {value}")
