"""A minute of `make fuzz`, and what its harness sees."""

import sys

import pytest

from multas_ray.errors import UserError
from tests.fuzz.__main__ import show
from tests.fuzz.harness import judged, run_kind
from tests.fuzz.kinds import KINDS


@pytest.mark.slow
def test_malformed_inputs_are_refused_or_read_right():
    outcomes = {name: run_kind(name, 1, 15) for name in KINDS}
    assert show(outcomes, 1) == 0
    # A kind that never gets past its reader, or is never refused, tests nothing.
    assert sum(outcome.right for outcome in outcomes.values()) > 50
    assert sum(outcome.refused for outcome in outcomes.values()) > 50


def test_an_input_is_right_refused_or_a_fault():
    def refuse() -> None:
        raise UserError("one line")

    assert judged(lambda: None) == {"outcome": "right"}
    assert judged(refuse) == {"outcome": "refused"}
    assert judged(lambda: 1 // 0)["error"].startswith("ZeroDivisionError at ")
    assert judged(lambda: sys.exit(3))["error"].startswith("SystemExit at ")
