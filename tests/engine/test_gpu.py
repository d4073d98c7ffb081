"""On CUDA: the recorder's numbers in float32 and bfloat16 against the slow twin on the CPU in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from exactness import LIMITS, relative_error, true_gram
from families import make_batch, make_model
from reference.pair_blocks import pair_blocks
from reweighting import coefficients, reweighting_error
from tiny_runs import run

from dyn_probe import Probe, row_gram, sequence_logps
from dyn_probe.engine import products
from dyn_probe.engine.factors import Outer
from dyn_probe.engine.routes import costs, rates

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")


@pytest.fixture(autouse=True)
def full_precision():
    """No TF32: float32 products are to be float32."""
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(was)


def errors_on(device, family, dtype) -> tuple[float, float]:
    """Errors of ``row_gram`` and of what the probe records from a training backward."""
    model, batch = make_model(family, dtype=dtype), make_batch()
    wanted = true_gram(copy.deepcopy(model), batch)
    model, batch = model.to(device), batch.to(device)
    direct = relative_error(row_gram(model, batch), wanted)
    probe = Probe(model, gram_every=1, certify=True)
    with probe.step(0, batch.ids, learning_rate=1.0):
        logps = sequence_logps(model, batch)
        probe.pairs(logps)
        torch.nn.functional.softplus(logps[3:] - logps[:3]).mean().backward()
    row = {name: torch.tensor([r[name] for r in probe.fresh]) for name in ("grad_norm_chosen", "grad_inner")}
    half = batch.pairs
    norms = wanted.diagonal().sqrt()
    chosen = (row["grad_norm_chosen"] / norms[:half] - 1).abs().max()
    inner = (row["grad_inner"] - wanted.diagonal(half)).abs() / (norms[:half] * norms[half:])
    return direct, float(torch.maximum(chosen, inner.max()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_agrees_with_the_slow_twin(family, dtype):
    direct, recorded = errors_on("cuda", family, dtype)
    assert direct < LIMITS[dtype] and recorded < LIMITS[dtype]


@pytest.mark.gpu
def test_reweighted_gradients_on_cuda():
    model = make_model("gpt2", dtype=torch.float32).cuda()
    assert reweighting_error(model, make_batch().to("cuda"), coefficients(6).float().cuda()) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"dtype": "autocast"}, {"lora_rank": 2}], ids=str)
def test_the_loop_trains_on_cuda(options, tmp_path):
    trace = run(tmp_path / "run", device="cuda", checkpoint_every=1, gram_every=1, **options)
    certificate = trace.manifest["certificate"]
    assert trace.closed and certificate["max_relative_error"] < certificate["tolerance"]


def test_the_comparison_itself_holds_on_the_cpu():
    assert max(errors_on("cpu", "llama", torch.float32)) < LIMITS[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("positions, p, q", [(300, 512, 384), (64, 1000, 200), (1024, 256, 256)])
def test_the_fused_kernel_on_cuda(dtype, positions, p, q):
    pytest.importorskip("triton")
    from dyn_probe.engine.kernels import pair_kernel

    torch.manual_seed(0)
    inputs, grads = (torch.randn(8, positions, n, device="cuda").to(dtype) for n in (q, p))
    wanted = pair_blocks(inputs.cpu(), grads.cpu())
    both = pair_kernel.pair_products(inputs, grads, lambda: wanted.cuda().flatten(1), sum_up=True)
    assert both is not None and both[1] is not None
    found, total = both[0].view(-1, 2, 2), both[1]
    summed = grads.double().flatten(0, 1).T @ inputs.double().flatten(0, 1)
    assert (total - summed).norm() <= 1e-5 * summed.norm()
    norms = wanted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((found.cpu() - wanted).abs() / (norms[:, :, None] * norms[:, None])).max() <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("positions, p, q", [(300, 512, 384), (64, 1000, 200), (128, 256, 16)])
def test_the_fused_kernel_with_a_metric_on_cuda(dtype, positions, p, q):
    pytest.importorskip("triton")
    from interpreted_kernel import known_twin

    from dyn_probe.engine.kernels import pair_kernel

    torch.manual_seed(0)
    inputs, grads = (torch.randn(6, positions, n, device="cuda").to(dtype) for n in (q, p))
    metric, directions = torch.rand(p, q, device="cuda") * 1e3, [torch.randn(p, q, device="cuda") for _ in range(2)]
    wanted = known_twin(inputs, grads, metric, directions)
    found, total = pair_kernel.launched(inputs, grads, None, True, metric, directions)
    assert float(((found - wanted).abs() / pair_kernel.sizes(wanted, True, directions)).max()) < 1e-5
    summed = grads.double().flatten(0, 1).T @ inputs.double().flatten(0, 1)
    assert float((total - summed).norm() / summed.norm()) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("positions", [96, 512])
def test_token_grams_on_cuda(dtype, positions, monkeypatch):
    """Short rows beside a large weight: from half precision without an upcast, a pair's own blocks where they lie."""
    monkeypatch.setattr(products, "fused_is_dearer", lambda *_: True)
    monkeypatch.setattr(products, "cheaper_by_tokens", lambda *_: True)
    monkeypatch.setitem(products.AT_ONCE, "cuda", 1 << 16)
    torch.manual_seed(0)
    inputs, grads = (torch.randn(8, positions, n, device="cuda").to(dtype) for n in (768, 1024))
    wanted = pair_blocks(inputs.cpu(), grads.cpu())
    found = products.gram(Outer(grads, inputs, False), 4).cpu()
    norms = wanted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((found - wanted).abs() / (norms[:, :, None] * norms[:, None])).max() <= 1e-5


@pytest.mark.gpu
def test_a_gpu_is_timed_once_and_chooses_token_grams_for_short_rows(monkeypatch):
    monkeypatch.setattr(rates, "USED", {})
    before = torch.cuda.get_rng_state()
    short, long = (torch.randn(16, n, 2048, device="cuda", dtype=torch.bfloat16) for n in (512, 8192))
    outputs = torch.randn(16, 512, 8192, device="cuda", dtype=torch.bfloat16)
    assert costs.fused_is_dearer(Outer(outputs, short, False), 8)
    (found,) = rates.USED.values()
    assert 1e13 < found.products < 1e15 and 1e10 < found.entries < 1e13
    assert rates.rates_of(long) is found and not costs.fused_is_dearer(Outer(long, long, False), 8)
    assert torch.equal(torch.cuda.get_rng_state(), before)  # the training's random numbers stay its own
