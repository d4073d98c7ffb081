"""A fast way is believed once it has agreed with the slow one on the same input."""

from __future__ import annotations

import pytest
import torch

from dyn_probe.engine.kernels.trusted import Trusted

WANTED = torch.tensor([3.0, -4.0])


def sizes(wanted):
    return wanted.norm(dim=-1, keepdim=True)


@pytest.fixture
def trusted() -> Trusted:
    return Trusted("the fast way", "another is")


def test_what_differs_is_not_used(trusted):
    assert trusted.agrees(lambda: WANTED * (1 + 1e-6), WANTED, sizes(WANTED))
    with pytest.warns(UserWarning, match=r"the fast way is not used .*differs from the slow way by .*; another is"):
        assert not trusted.agrees(lambda: WANTED * 1.01, WANTED, sizes(WANTED))
    with pytest.warns(UserWarning, match="differs from the slow way by inf"):
        assert not trusted.agrees(lambda: WANTED * float("nan"), WANTED, sizes(WANTED))


def test_what_does_not_run_is_not_used(trusted):
    def fails():
        raise RuntimeError("no such architecture\nand more")

    with pytest.warns(UserWarning, match="RuntimeError: no such architecture"):
        assert not trusted.agrees(fails, WANTED, sizes(WANTED))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_decides_nothing(trusted, broken):
    """The first steps of float16 with a loss scale overflow; the fast way must be tried again after them."""
    overflowed = torch.tensor([3.0, broken])
    assert trusted("key", pytest.fail, lambda: overflowed, sizes) is overflowed
    assert not trusted.usable
    fast = WANTED * (1 + 1e-6)
    assert trusted("key", lambda: fast, lambda: WANTED, sizes) is fast
    assert trusted("key", lambda: fast, pytest.fail, sizes) is fast


def test_trust_is_in_one_program(trusted):
    with pytest.warns(UserWarning, match="differs from the slow way"):
        assert trusted("one", lambda: WANTED * 2, lambda: WANTED, sizes) is None
    assert trusted("one", pytest.fail, pytest.fail, sizes) is None
    assert trusted("another", lambda: WANTED, lambda: WANTED, sizes) is WANTED
