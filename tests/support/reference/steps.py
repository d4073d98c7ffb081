"""Optimizers written out from their papers, for one parameter at a time, with the terms of a step kept apart.

Each class follows the gradients of one parameter from the first step on. ``step(gradient, weights)`` returns what the
new gradient, the past and the decay contribute to ``Δθ``, and the metric ``ωP`` that multiplies the new gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Terms:
    gradient: torch.Tensor
    past: torch.Tensor
    decay: torch.Tensor
    metric: torch.Tensor

    @property
    def change(self):
        return self.gradient + self.past + self.decay


class Adam:
    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=True, amsgrad=False):
        self.lr, self.betas, self.eps, self.rate, self.decoupled = lr, betas, eps, weight_decay, decoupled
        self.amsgrad, self.t, self.m, self.v, self.most = amsgrad, 0, 0.0, 0.0, 0.0

    def step(self, gradient, weights):
        self.t += 1
        b1, b2 = self.betas
        whole = gradient if self.decoupled else gradient + self.rate * weights
        old = b1 * self.m
        self.m, self.v = old + (1 - b1) * whole, b2 * self.v + (1 - b2) * whole**2
        self.most = torch.maximum(torch.as_tensor(self.most), self.v)
        second = (self.most if self.amsgrad else self.v) / (1 - b2**self.t)
        scale = self.lr / (1 - b1**self.t) / (second.sqrt() + self.eps)
        decay = -self.lr * self.rate * weights if self.decoupled else -scale * (1 - b1) * self.rate * weights
        return Terms(-scale * (1 - b1) * gradient, -scale * old, decay, scale * (1 - b1))


class Sgd:
    def __init__(self, lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
        self.lr, self.mu, self.d, self.nesterov = lr, momentum, dampening, nesterov
        self.rate, self.buffer = weight_decay, None

    def step(self, gradient, weights):
        share = 1.0 if self.buffer is None else 1 - self.d
        old = torch.zeros_like(gradient) if self.buffer is None else self.mu * self.buffer
        self.buffer = old + share * (gradient + self.rate * weights)
        if self.mu == 0.0:
            share, old = 1.0, torch.zeros_like(gradient)
        weight = self.lr * (1 + self.mu * share) if self.nesterov else self.lr * share
        past = self.lr * self.mu * old if self.nesterov else self.lr * old
        return Terms(-weight * gradient, -past, -weight * self.rate * weights, torch.full_like(gradient, weight))


class RmsProp:
    def __init__(self, lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
        self.lr, self.alpha, self.eps, self.rate = lr, alpha, eps, weight_decay
        self.mu, self.centered, self.v, self.mean, self.buffer = momentum, centered, 0.0, 0.0, 0.0

    def step(self, gradient, weights):
        whole = gradient + self.rate * weights
        self.v = self.alpha * self.v + (1 - self.alpha) * whole**2
        self.mean = self.alpha * self.mean + (1 - self.alpha) * whole
        spread = self.v - self.mean**2 if self.centered else self.v
        scale = 1 / (spread.sqrt() + self.eps)
        old = self.mu * self.buffer
        self.buffer = old + scale * whole
        past = -self.lr * old * torch.ones_like(gradient)
        return Terms(-self.lr * scale * gradient, past, -self.lr * scale * self.rate * weights, self.lr * scale)


class Adagrad:
    def __init__(self, lr, lr_decay=0.0, weight_decay=0.0, eps=1e-10):
        self.lr, self.fade, self.rate, self.eps, self.t, self.total = lr, lr_decay, weight_decay, eps, 0, 0.0

    def step(self, gradient, weights):
        whole = gradient + self.rate * weights
        self.total = self.total + whole**2
        scale = self.lr / (1 + self.t * self.fade) / (self.total.sqrt() + self.eps)
        self.t += 1
        return Terms(-scale * gradient, torch.zeros_like(gradient), -scale * self.rate * weights, scale)


class NAdam:
    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3):
        self.lr, self.betas, self.eps, self.rate, self.psi = lr, betas, eps, weight_decay, momentum_decay
        self.t, self.m, self.v, self.product = 0, 0.0, 0.0, 1.0

    def step(self, gradient, weights):
        self.t += 1
        b1, b2 = self.betas
        now, coming = (b1 * (1 - 0.5 * 0.96 ** (t * self.psi)) for t in (self.t, self.t + 1))
        self.product = float(torch.tensor(self.product, dtype=torch.float32) * now)  # torch keeps it in float32
        whole, old = gradient + self.rate * weights, b1 * self.m
        self.m, self.v = old + (1 - b1) * whole, b2 * self.v + (1 - b2) * whole**2
        metric = 1 / ((self.v / (1 - b2**self.t)).sqrt() + self.eps)
        first = self.lr * (1 - now) / (1 - self.product)
        second = self.lr * coming / (1 - self.product * coming)
        weight = first + second * (1 - b1)
        return Terms(
            -weight * metric * gradient,
            -second * metric * old,
            -weight * metric * self.rate * weights,
            weight * metric,
        )


class Adafactor:
    """torch's: factored for matrices, the step relative to the size of the weights before it."""

    def __init__(self, lr, weight_decay=0.0, d=1.0, beta2_decay=-0.8, smallest=1e-3):
        self.lr, self.rate, self.d, self.power, self.smallest = lr, weight_decay, d, beta2_decay, smallest
        self.t, self.second = 0, None

    def step(self, gradient, weights):
        self.t += 1
        fresh = self.t**self.power
        squares = gradient**2
        new = (squares.mean(-1), squares.mean(-2)) if gradient.dim() > 1 else (squares,)
        old = [torch.zeros_like(n) for n in new] if self.second is None else self.second
        self.second = [o + fresh * (n - o) for o, n in zip(old, new, strict=True)]
        floor = torch.finfo(gradient.dtype).eps
        if gradient.dim() > 1:
            rows, columns = self.second
            estimate = rows.unsqueeze(-1) * columns.unsqueeze(-2) / rows.mean().clamp(min=floor)
        else:
            (estimate,) = self.second
        metric = estimate.clamp(min=floor**2).rsqrt()
        size = max(self.smallest, float(weights.norm()) / weights.numel() ** 0.5) * min(self.lr, self.t**-0.5)
        update = metric * gradient
        weight = size / max(1.0, float(update.norm()) / (update.numel() ** 0.5 * self.d))
        return Terms(-weight * update, torch.zeros_like(update), -self.lr * self.rate * weights, weight * metric)
