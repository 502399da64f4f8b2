"""The texts that the pack of assets carries: licence and credits, taken from the Debian package's copyright file, changes."""

import textwrap
from pathlib import Path

CHANGES = """\
Changes made to the MegaGlest data in this folder (CC-BY-SA-3.0, section 4: "identify the changes made")

- Only units of the factions egypt, indian, magic, norsemen and tech, and some ground textures of the tilesets, are here.
- Every unit was turned from .g3d files into one .glb: at most two clips, at most nine key frames each; vertex positions
  rounded to 8 bits relative to a middle pose; normals rounded to 8 bits and kept of the first key frame only.
- Textures were scaled down to at most 128 pixels a side and saved as JPEG; where the game shows the team's colour, one
  fixed colour was painted in.
- Ground textures were scaled down to at most 128 pixels a side and saved as JPEG.
- `manifest.json` (names, clips, splits) is new.
Made by `fourreal data build`.
"""


def _section(copyright_file: Path, start: str, end: str) -> str:
    lines = copyright_file.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    last = next((i for i in range(first + 1, len(lines)) if lines[i].startswith(end)), len(lines))
    body = [("" if line.strip() == "." else line.removeprefix(" ")) for line in lines[first + 1 : last]]
    return "\n".join(body).strip() + "\n"


def licence_text(copyright_file: Path) -> str:
    """The full text of CC-BY-SA-3.0 as the package states it."""
    lines = copyright_file.read_text(encoding="utf-8").splitlines()
    at = [i for i, line in enumerate(lines) if line.startswith("License: CC-BY-SA-3.0")][-1]
    body = [("" if line.strip() == "." else line.removeprefix(" ")) for line in lines[at + 1 :]]
    title = "Creative Commons Attribution-ShareAlike 3.0 Unported (CC-BY-SA-3.0)\n\n"
    return title + "\n".join(body).strip() + "\n"


def credits_text(copyright_file: Path) -> str:
    """Who made the data, as the package's copyright file names them, and what it asks of those who pass it on."""
    head = textwrap.dedent("""\
        The units and ground textures in this folder come from MegaGlest (https://megaglest.org,
        https://github.com/MegaGlest/megaglest-data), taken from the Debian package megaglest-data.

        Copyright 2001-2008, The Glest Team (http://glest.org)
        Copyright 2008-2017, The MegaGlest Team (http://megaglest.org)
        Licence: CC-BY-SA-3.0 (file LICENSE). What was changed: file CHANGES. Pictures and videos that show these assets are
        adaptations of them and stay under the same licence.

        The package's own list of authors:

        """)
    return head + _section(copyright_file, "Comment:", "Files:")
