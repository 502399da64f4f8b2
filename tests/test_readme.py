"""What the README shows is run as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

from fourreal import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_import_snippet_runs_and_returns_a_grid():
    names = {}
    exec(SNIPPETS[0], names)
    assert names["grid"].shape == (4, 4, 64, 64, 3) and names["grid"].dtype == np.uint8
    np.testing.assert_array_equal(names["grid"][names["given"]], names["frames"][names["given"]])


def test_the_module_snippet_runs_and_makes_a_model():
    names = {}
    exec(SNIPPETS[1], names)
    x = np.zeros((1, 2, 3, 16, 16, 3), np.float32)
    assert names["model"](x, np.ones(1, np.float32)).shape == x.shape


@pytest.mark.parametrize("line", re.findall(r"^\.venv/bin/(.*)$", README, re.MULTILINE))
def test_every_command_of_the_readme_parses(line, monkeypatch):
    words = line.split("#")[0].split()
    words = words[1:] if words[0] in ("fourreal", "python") else words
    verb = words[0].removesuffix(".py")
    if verb == "data":
        verb, words = " ".join(words[:2]), words[1:]
    monkeypatch.chdir(ROOT)
    assert type(cli.parse(verb, words[1:])).__name__ == cli.VERBS[verb][1]


def test_the_files_and_folders_it_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing
