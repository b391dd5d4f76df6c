"""The fenced blocks of the project's READMEs."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(.*)$")


@dataclass
class Block:
    """A fenced block: the first word after the fence, the others, its text, the section (`##`) around it, its line."""

    kind: str
    tags: list[str]
    text: str
    section: str
    line: int


def blocks(path: Path) -> list[Block]:
    """The blocks of a README, in order."""
    found, section, opened = [], "", None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if opened is not None and fence:
            found.append(opened)
            opened = None
        elif opened is not None:
            opened.text += line + "\n"
        elif fence:
            kind, *tags = fence[1].split() or ["sh"]
            opened = Block(kind, tags, "", section, number)
        elif line.startswith("## "):
            section = line[3:]
    assert opened is None, f"{path}:{opened.line}: the block has no end"
    return found
