"""``python -m torch_clipped FILE``: a report on the gradient norms of a run and on clipping."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

FORMATS = (".png", ".pdf", ".svg")
LONG = 2000  # norms replayed in two seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tail statistics, levels and the effect of each clipping type on a run; draw a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_clipped",
        description="Read the gradient norms of a run. Print how heavy their tails are, the levels that clip given shares of the "
        "steps, and what each clipping type would have done. Draw the norms over time, their histogram and survival function.",
    )
    parser.add_argument(
        "file",
        type=Path,
        help="a csv file (of a NormRecorder, an export of Weights & Biases, or numbers alone), a TensorBoard event file, or the "
        "folder of a run's event files",
    )
    parser.add_argument("--column", help="the column or tag with the norms (default: the one with 'norm' in its name)")
    parser.add_argument("--picture", type=Path, help="the picture, a new file (default: FILE-norms.png in the current folder)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples for the intervals (default: 0)")
    options = parser.parse_args(arguments)
    picture = options.picture or Path(f"{options.file.resolve().stem}-norms.png")
    try:
        if options.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {options.seed}")
        if picture.suffix not in FORMATS:
            raise ValueError(f"--picture must end in one of {', '.join(FORMATS)}, got {str(picture)!r}")
        if picture.exists() or not picture.parent.is_dir():
            reason = "there is" if picture.exists() else "there is no folder for"
            raise ValueError(f"--picture must be a new file, but {reason} {picture}")
        from ._norm_files import read_norms
        from ._report import REPLAYED, draw, report

        recorded = read_norms(options.file, options.column)
        if (count := min(len(recorded.norms), REPLAYED)) > LONG:
            print(f"replaying {count} norms with each clipping type: about {count // LONG * 2} seconds", file=sys.stderr)
        text = report(recorded, options.seed)
        draw(recorded, picture)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, f"picture: {picture}", sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
