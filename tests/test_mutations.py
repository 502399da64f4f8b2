"""Every one-line break in `mutations.py` is noticed by the test named beside it."""

import pytest
from mutations import BREAKS, run_all


@pytest.mark.slow
def test_named_test_fails_for_every_broken_line():
    assert len(BREAKS) >= 25
    verdicts = run_all(BREAKS, unbroken_first=False)  # that is what the other tests of this run show
    unnoticed = {one: found for one, found in verdicts.items() if found != "caught"}
    assert not unnoticed
