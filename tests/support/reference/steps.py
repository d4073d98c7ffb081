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
