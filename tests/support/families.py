"""Small random models of every supported family, and preference batches with unequal lengths."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

from dyn_probe import PairBatch

VOCAB = 97
_SMALL = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
_ROTARY = dict(_SMALL, num_key_value_heads=2, max_position_embeddings=64)

FAMILIES = {
    "gpt2": lambda **k: tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **k),
    "llama": lambda **k: tf.LlamaConfig(**_ROTARY, **k),
    "mistral": lambda **k: tf.MistralConfig(**_ROTARY, sliding_window=6, **k),
    "qwen2": lambda **k: tf.Qwen2Config(**_ROTARY, **k),
    "qwen3": lambda **k: tf.Qwen3Config(**_ROTARY, head_dim=8, **k),
    "gemma2": lambda **k: tf.Gemma2Config(**_ROTARY, head_dim=8, sliding_window=6, **k),
    "gpt_neox": lambda **k: tf.GPTNeoXConfig(**_SMALL, max_position_embeddings=64, **k),
    "opt": lambda **k: tf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        **k,
    ),
    "phi": lambda **k: tf.PhiConfig(**_SMALL, max_position_embeddings=64, **k),
    "bloom": lambda **k: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **k),
    "falcon": lambda **k: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **k
    ),
    "stablelm": lambda **k: tf.StableLmConfig(**_ROTARY, qk_layernorm=True, **k),
}
MORE_FAMILIES = {
    "biogpt": lambda **k: tf.BioGptConfig(**_SMALL, max_position_embeddings=64, **k),
    "starcoder2": lambda **k: tf.Starcoder2Config(**_ROTARY, **k),
}
"""Further ones, for what concerns dropout."""
DROPOUT_OFF = {
    "gpt2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "opt": dict(dropout=0.0, attention_dropout=0.0),
    "biogpt": dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "starcoder2": dict(attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0),
}
DROPOUT_ON = {
    "gpt2": dict(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2),
    "opt": dict(dropout=0.2, attention_dropout=0.2),
    "gpt_neox": dict(hidden_dropout=0.2, attention_dropout=0.2),
    "llama": dict(attention_dropout=0.2),
    "bloom": dict(hidden_dropout=0.2, attention_dropout=0.2),
    "falcon": dict(hidden_dropout=0.2, attention_dropout=0.2),
    "biogpt": dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2),
    "starcoder2": dict(attention_dropout=0.2, residual_dropout=0.2, embedding_dropout=0.2),
}
"""Family → its dropout rates by name, all of them on. Most families apply them by function, not by module."""


@contextmanager
def double_throughout():
    """Let float64 models compute in float64: transformers casts norms, softmax and rotary angles to float32.

    In float64 those casts limit any two computations of one gradient to 1e-8, and turn a fully masked row to NaN.
    """
    to, softmax = torch.Tensor.to, F.softmax

    def kept(self, *args, **kwargs):
        if self.dtype == torch.float64 and torch.float32 in (*args, kwargs.get("dtype")):
            args = tuple(a for a in args if a is not torch.float32)
            kwargs.pop("dtype", None)
            return to(self, *args, **kwargs) if args or kwargs else self
        return to(self, *args, **kwargs)

    def soft(x, dim=None, dtype=None, **kwargs):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    single, matmul = torch.Tensor.float, torch.Tensor.__matmul__

    def common(left, right):
        wide = torch.promote_types(left.dtype, right.dtype)
        return matmul(left.to(wide), right.to(wide))

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(torch.Tensor, "to", kept))
        patches.enter_context(
            mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))
        )
        patches.enter_context(mock.patch.object(torch.Tensor, "__matmul__", common))
        patches.enter_context(mock.patch.object(F, "softmax", soft))
        patches.enter_context(mock.patch.object(nn.functional, "softmax", soft))
        yield


def make_model(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, noise: float = 0.1, **config
) -> nn.Module:
    """A random model in train mode without dropout, with every parameter moved off its initial value."""
    settings = {**DROPOUT_OFF.get(family, {}), **config}
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(
        {**FAMILIES, **MORE_FAMILIES}[family](**settings), attn_implementation="eager"
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    return model.to(dtype).train()


def make_batch(
    pairs: int = 3, length: int = 14, side: str = "right", seed: int = 1, extra: int = 0, pad: int = 0
) -> PairBatch:
    """Pairs with a shared prompt, unequal lengths, and padding; the padding token also occurs inside responses."""
    g = torch.Generator().manual_seed(seed)
    rows = 2 * pairs
    width = length + extra
    ids = torch.full((rows, width), pad)
    mask, response = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    for i in range(pairs):
        prompt_length = int(torch.randint(2, 5, (1,), generator=g))
        prompt = torch.randint(0, VOCAB, (prompt_length,), generator=g)
        for row in (i, i + pairs):
            n = int(torch.randint(2, length - prompt_length + 1, (1,), generator=g))
            answer = torch.randint(0, VOCAB, (n,), generator=g)
            answer[-1] = pad
            tokens = torch.cat([prompt, answer])
            start = 0 if side == "right" else width - len(tokens)
            ids[row, start : start + len(tokens)] = tokens
            mask[row, start : start + len(tokens)] = 1
            response[row, start + prompt_length : start + len(tokens)] = 1
    return PairBatch(ids, mask, response)
