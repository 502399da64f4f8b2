"""The tests that situations.md names exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_row_names_tests_that_exist():
    rows = re.findall(r"^\| .*\]\(https.*$", (HERE / "situations.md").read_text(), re.MULTILINE)
    assert rows
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^def {test}\(", (HERE / file).read_text(), re.MULTILINE), f"{file}::{test}"
