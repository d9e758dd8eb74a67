"""The pages of this repository: their Python blocks and their sections, and what their links point at."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "experiments/README.md")
] + sorted((ROOT / "docs").rglob("*.md"))


def page(name):
    """The text of a page, with the pages that it includes."""
    file = ROOT / name
    return re.sub(
        r"```\{include\} (\S+)\n.*?```", lambda found: page((file.parent / found[1]).resolve()), file.read_text(), flags=re.DOTALL
    )


def sections(text):
    """The sections of the second level by title."""
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in ("\n" + text).split("\n## ")[1:]}


def python_blocks(text):
    """The Python code in a page or a section."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run(blocks, origin, names=None):
    """Run blocks one after another; the names that they have made."""
    names = {} if names is None else names
    for block in blocks:
        exec(compile(block, origin, "exec"), names)
    return names


def without_code(text):
    """The prose of a page, which alone has links."""
    return re.sub(r"`[^`\n]*`", "code", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text):
    """The targets of the links and pictures of a page."""
    return re.findall(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)?)\)", without_code(text))


def anchors(text):
    """The names that GitHub and the documentation give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
