"""Write sentences and their translations, separated by tabs, from message catalogues of gettext (.mo files).

``python -m experiments.common.pairs FOLDER... --out FILE`` reads all catalogues in the folders. Debian's packages of
translations have some: ``apt-get download libreoffice-l10n-fr && dpkg -x libreoffice-l10n-fr*.deb french`` gives English and
French ones.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .packages import needed

SHORTEST, LONGEST = 3, 12  # words of a message
ACCELERATOR = re.compile(r"~(?=[^\W\d])|(?<!\w)[_&](?=[^\W\d])")  # marks the underlined letter of a menu entry
NO_SENTENCE = re.compile(r"[<>{}|\\%$#@=\t\n]")  # markup, placeholders, lists


def read_catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the sentences of a catalogue and their translations; raise ValueError if the catalogue is damaged."""
    read_mo = needed("babel.messages.mofile", "Babel", "a catalogue").read_mo
    try:
        with path.open("rb") as file:
            messages = list(read_mo(file))
    except Exception as error:  # a damaged file may raise anything: struct.error, UnicodeDecodeError, OSError
        raise ValueError(f"FOLDER must hold catalogues of gettext, got {path.name} ({error})") from None
    for message in messages:
        if isinstance(message.id, str) and isinstance(message.string, str):
            texts = message.id, message.string
            source, target = (" ".join(ACCELERATOR.sub("", text).split()) for text in texts)
            if source != target and all(_is_sentence(text) for text in texts):
                yield source, target


def _is_sentence(text: str) -> bool:
    return SHORTEST <= len(text.split()) <= LONGEST and not NO_SENTENCE.search(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pairs, each message once, and print their number."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.pairs", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder with .mo files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"FOLDER must be a folder, got {str(folder)!r}")
    catalogues = sorted(path for folder in options.folders for path in folder.rglob("*.mo"))
    if options.out.exists():
        parser.error(f"out must be a new file, got {str(options.out)!r}, which exists")
    try:
        pairs = dict(pair for path in catalogues for pair in read_catalogue(path))
        if not pairs:
            raise ValueError(f"FOLDER must hold catalogues of gettext with sentences, got {len(catalogues)} files .mo")
        options.out.write_text("".join(f"{source}\t{target}\n" for source, target in sorted(pairs.items())), encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{len(pairs)} pairs of {len(catalogues)} catalogues in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
