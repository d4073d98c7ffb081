"""The product table against brute force: every form, every meeting of forms, with and without a metric."""

from __future__ import annotations

import pytest
import torch

from dyn_probe.engine import arithmetic, products
from dyn_probe.engine.arithmetic import dots, matmul32
from dyn_probe.engine.factors import Lookup, Outer, Vector
from dyn_probe.engine.held import Held
from dyn_probe.engine.kinds.generic import MadeVector
from dyn_probe.engine.products import PRODUCTS, cross, gram
from dyn_probe.engine.routes import blocks, costs

ROWS, WIDTHS = 6, (7, 5)
"""Rows of a factor, and the parameter's shape (entries or outputs, inputs)."""


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outer(seed=0, positions=4, shared=False, transposed=False, dtype=torch.float64):
    inputs, outputs = WIDTHS[::-1] if not transposed else WIDTHS
    given = draw(1 if shared else ROWS, positions, inputs, seed=seed, dtype=dtype)
    return Outer(draw(ROWS, positions, outputs, seed=seed + 1, dtype=dtype), given, transposed)


def lookup(seed=0, positions=4, shared=False):
    ids = torch.randint(0, WIDTHS[0], (1 if shared else ROWS, positions), generator=torch.Generator().manual_seed(seed))
    return Lookup(draw(ROWS, positions, WIDTHS[1], seed=seed + 1), ids, WIDTHS[0])


def vector(seed=0):
    return Vector(draw(ROWS, WIDTHS[0] * WIDTHS[1], seed=seed))


def made(seed=0):
    rows = vector(seed).grads
    return MadeVector(rows[:, :0], lambda i: rows[i])


FACTORS = {
    "linear": outer,
    "linear, shared inputs": lambda seed=0: outer(seed, shared=True),
    "linear, one position": lambda seed=0: outer(seed, positions=1),
    "transposed": lambda seed=0: outer(seed, transposed=True),
    "lookup": lookup,
    "lookup, shared ids": lambda seed=0: lookup(seed, shared=True),
    "vector": vector,
    "made vector": made,
}


def dense(factor):
    """``[rows, n]`` by plain sums of outer products, in the parameter's shape."""
    rows = []
    for i in range(ROWS):
        total = torch.zeros(WIDTHS, dtype=torch.float64)
        if isinstance(factor, Outer):
            for a, b in zip(factor.inputs[i % len(factor.inputs)], factor.grads[i], strict=True):
                total += torch.outer(a, b) if factor.transposed else torch.outer(b, a)
        elif isinstance(factor, Lookup):
            for x, d in zip(factor.ids[i % len(factor.ids)], factor.grads[i], strict=True):
                total[x] += d
        else:
            total += factor.take(slice(i, i + 1))[0].reshape(WIDTHS)
        rows.append(total.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 6), slice(1, 2)], ids=str)
def test_the_sum_over_some_rows_is_that_of_these_rows(name, rows):
    """What the other rows have in the coefficients, a NaN even, does not count."""
    factor, coefficients = FACTORS[name](), torch.full((ROWS,), float("nan"), dtype=torch.float64)
    coefficients[rows] = draw(ROWS, seed=9)[rows]
    held = Held((({"weight": [factor]}, torch.ones(ROWS, dtype=torch.float64)),))
    wanted = (coefficients[rows, None] * dense(factor)[rows]).sum(0).view(WIDTHS)
    found = held.weighted("weight", coefficients, torch.Size(WIDTHS), rows)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    more = held.weighted("weight", coefficients, torch.Size(WIDTHS), rows, found)
    assert more is found
    torch.testing.assert_close(more, 2 * wanted, rtol=1e-12, atol=1e-12)
    assert held.weighted("other", coefficients, torch.Size(WIDTHS), rows) is None


def brute(one, other, groups, metric=None):
    weights = torch.ones(WIDTHS, dtype=torch.float64) if metric is None else metric
    whole = (dense(one) * weights.flatten()) @ dense(other).T
    n = ROWS // groups
    return torch.stack([whole[g::groups, g::groups] for g in range(groups)]).reshape(groups, n, n)


@pytest.mark.parametrize("metric", [None, draw(*WIDTHS, seed=9).abs()], ids=["plain", "metric"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_with_itself(name, groups, metric):
    factor = FACTORS[name]()
    assert torch.allclose(gram(factor, groups, metric), brute(factor, factor, groups, metric), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", [None, draw(*WIDTHS, seed=9).abs()], ids=["plain", "metric"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("other", FACTORS)
@pytest.mark.parametrize("one", FACTORS)
def test_every_form_meets_every_form(one, other, groups, metric):
    left, right = FACTORS[one](0), FACTORS[other](20)
    assert torch.allclose(
        cross(left, right, groups, metric), brute(left, right, groups, metric), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_are_compared_one_by_one_where_there_are_many(name, groups, monkeypatch):
    monkeypatch.setitem(products.AT_ONCE, "cpu", 0)
    monkeypatch.setattr(costs, "LAUNCHED", {"cpu": 0})
    one, other = FACTORS[name](), FACTORS[name](20)
    for metric in (None, draw(*WIDTHS, seed=9).abs()):
        assert torch.allclose(gram(one, groups, metric), brute(one, one, groups, metric), rtol=1e-12, atol=1e-12)
        assert torch.allclose(
            cross(one, other, groups, metric), brute(one, other, groups, metric), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "uses",
    [["linear"], ["lookup"], ["linear", "lookup"], ["lookup", "linear", "linear"], ["vector", "linear"]],
    ids="+".join,
)
def test_the_uses_of_a_small_parameter_are_summed(uses, groups):
    factors = [FACTORS[name](7 * k) for k, name in enumerate(uses)]
    wanted = sum(brute(one, other, groups) for one in factors for other in factors)
    for way in (products.by_sum, products.of_uses):
        assert torch.allclose(way(factors, groups), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [0, 1, 63, 512, 513, 700, 1024, 1037])
@pytest.mark.parametrize("dtypes", [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)])
def test_sums_of_any_length(size, dtypes):
    left, right = (draw(n, 2, size, seed=n).to(dtype) for n, dtype in zip((3, 4), dtypes, strict=True))
    wanted = torch.einsum("ngk,mgk->gnm", left.double(), right.double())
    assert torch.allclose(dots(left, right), wanted, rtol=1e-5, atol=1e-4)
    assert torch.allclose(dots(left, left), torch.einsum("ngk,mgk->gnm", left.double(), left.double()), rtol=1e-5)


@pytest.mark.parametrize("route", [True, False], ids=["token Grams", "blocks"])
@pytest.mark.parametrize("groups", [1, 3])
def test_both_routes_of_linear_uses(route, groups, monkeypatch):
    monkeypatch.setattr(costs, "LAUNCHED", {"cpu": 0})
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: route)
    one, other = outer(0, positions=9), outer(5, positions=3)
    assert torch.allclose(gram(one, groups), brute(one, one, groups), rtol=1e-12)
    assert torch.allclose(cross(one, other, groups), brute(one, other, groups), rtol=1e-12)


def test_small_chunks_change_nothing(monkeypatch):
    monkeypatch.setattr(products, "CHUNK", 8)
    monkeypatch.setattr(blocks, "SLICE", {"cpu": 8})
    monkeypatch.setitem(products.AT_ONCE, "cpu", 0)
    one, metric = outer(0), draw(*WIDTHS, seed=9).abs()
    for groups in (1, 3):
        assert torch.allclose(gram(one, groups), brute(one, one, groups), rtol=1e-12)
        assert torch.allclose(gram(one, groups, metric), brute(one, one, groups, metric), rtol=1e-12)


@pytest.mark.parametrize("size", [8, 100, 1 << 22])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_slices_are_cut_along_either_side(transposed, groups, size, monkeypatch):
    """The parameter is wider in its first dimension, its transpose in its second; a sum has the parameter's shape, and
    what is cut is the wider one."""
    monkeypatch.setattr(blocks, "SLICE", {"cpu": size})
    one, other = (outer(seed, positions=9, transposed=transposed) for seed in (0, 5))
    for a, b in ((one, other), (one.turned(), other.turned())):
        assert torch.allclose(blocks.by_blocks(a, a, groups), brute(one, one, groups), rtol=1e-12)
        assert torch.allclose(blocks.by_blocks(a, b, groups), brute(one, other, groups), rtol=1e-12)
        seen = []
        see = lambda *slice_and_rows, seen=seen: seen.append(slice_and_rows)  # noqa: E731
        ways = (blocks.blocks_and_sum(a, groups), blocks.blocks_and_sum(a, groups, see))
        wanted = dense(one).sum(0).view(WIDTHS)
        for answers, total in ways:
            assert torch.allclose(answers, brute(one, one, groups), rtol=1e-12) and total.is_contiguous()
            assert torch.allclose(total, wanted if a is one else wanted.T, rtol=1e-12)
        assert (len(seen) > 1) == (size <= 100)


@pytest.mark.parametrize("turned", [False, True])
def test_the_wider_side_is_cut_whatever_the_parameter_looks_like(turned, monkeypatch):
    monkeypatch.setattr(blocks, "SLICE", {"cpu": 8})
    cut, made = set(), Outer.block
    monkeypatch.setattr(
        Outer, "block", lambda self, s, out=None: (cut.add(self.sides[0].shape[-1]), made(self, s, out))[1]
    )
    one = outer().turned() if turned else outer()
    blocks.by_blocks(one, one, 3)
    blocks.blocks_and_sum(one, 3)
    assert cut == {max(WIDTHS)}


def test_half_precision_on_a_cpu_is_not_cut_finely(monkeypatch):
    """Each slice would have the whole of the other side turned into float32 once more."""
    one, count, made = outer(dtype=torch.bfloat16), [], Outer.block
    monkeypatch.setattr(Outer, "block", lambda self, s, out=None: (count.append(out), made(self, s, out))[1])
    monkeypatch.setattr(blocks, "SLICE", {"cpu": 8})
    wide = Outer(one.grads.double(), one.inputs.double())
    wanted = brute(wide, wide, 3)
    assert torch.allclose(blocks.by_blocks(one, one, 3), wanted, rtol=1e-5)
    assert count == [None]
    monkeypatch.setattr(blocks, "LARGE", 100)
    assert torch.allclose(blocks.by_blocks(one, one, 3), wanted, rtol=1e-5)
    assert count == [None] * 4


def test_a_cpu_writes_no_more_gradients_at_once_than_its_caches_hold():
    """Slices beyond some ten MiB come fresh from the system each time, and are then slower to touch than to compute."""
    use = Outer(torch.zeros(8, 4, 768), torch.zeros(8, 4, 3072))
    largest = []
    made = Outer.block

    def block(self, entries, out=None):
        largest.append(len(range(*entries.indices(self.sides[0].shape[-1]))) * self.rows * self.sides[1].shape[-1])
        return made(self, entries, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outer, "block", block)
        products.blocks_and_sum(use, 4)
        blocks.by_blocks(use, use, 1)
    assert len(largest) >= 2 * 5 and max(largest) <= 1 << 22


@pytest.mark.parametrize("groups", [1, 3])
def test_a_head_keeps_only_the_columns_that_its_table_needs(groups):
    head, table = outer(0), lookup(20)
    met = head.met(table.ids.unflatten(0, (-1, groups)))
    assert met.grads.untyped_storage().nbytes() == 0
    assert torch.allclose(cross(met, table, groups), brute(head, table, groups), rtol=1e-12)


@pytest.mark.parametrize("name", FACTORS)
def test_what_every_factor_knows(name):
    factor, rows, direction, weights = (
        FACTORS[name](),
        dense(FACTORS[name]()),
        draw(*WIDTHS, seed=8),
        draw(ROWS, seed=7),
    )
    assert torch.allclose(factor.along(direction), rows @ direction.flatten(), rtol=1e-12)
    assert torch.allclose(torch.stack([factor.dense(i) for i in range(ROWS)]), rows, rtol=1e-12)
    start = draw(*WIDTHS, seed=6)
    total = factor.weighted(weights, start.clone(), torch.Size(WIDTHS))
    assert torch.allclose(total, start + (weights @ rows).reshape(WIDTHS), rtol=1e-12)
    assert torch.allclose(factor.weighted(weights, None, torch.Size(WIDTHS)), total - start, rtol=1e-9, atol=1e-12)
    scaled = factor.scaled(weights)
    assert torch.allclose(gram(scaled, 1)[0], (rows * weights[:, None]) @ (rows * weights[:, None]).T, rtol=1e-12)
    assert torch.allclose(gram(factor.settled(), 1), gram(factor, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_are_summed_in_float32(dtype):
    one = outer(0, dtype=dtype)
    exact = Outer(one.grads.double(), one.inputs.double())
    for groups in (1, 3):
        error = (gram(one, groups) - brute(exact, exact, groups)).abs().max() / brute(exact, exact, groups).abs().max()
        assert float(error) < 1e-6


def test_the_table_has_a_wrong_entry_and_the_comparison_sees_it(monkeypatch):
    monkeypatch.setitem(
        PRODUCTS, ("outer", "outer"), lambda one, other, groups, metric: brute(one, other, groups) * 1.001
    )
    assert not torch.allclose(gram(outer(), 3), brute(outer(), outer(), 3), rtol=1e-12)


@pytest.mark.parametrize(("outputs", "inputs"), [(0, 5), (7, 0)])
def test_a_weight_without_outputs_or_inputs_has_products_of_zero(outputs, inputs):
    empty = Outer(torch.zeros(ROWS, 4, outputs), torch.zeros(ROWS, 4, inputs))
    for groups in (ROWS // 2, 1):
        found = blocks.by_blocks(empty, empty, groups)
        assert found.shape == (groups, ROWS // groups, ROWS // groups) and not found.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [4, 7, 20])
def test_rows_that_were_cut_out_of_more_positions_are_multiplied_together(width, dtype, monkeypatch):
    """As a head's output-gradients at the response positions: in slices of their last dimension, the last one short."""
    monkeypatch.setattr(arithmetic, "TOGETHER", width)
    left, right = draw(3, 6, 19, dtype=dtype)[:, 1:5], draw(19, 5, seed=1, dtype=dtype)
    twin = torch.einsum("rpk,kn->rpn", left.double(), right.double())
    found = matmul32(left, right)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), twin, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)
