"""The built-in model and tokenizer: small, seeded, created on the fly, so that everything runs offline."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from dyn_probe.data.generated.answers import corpus

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY = 1024
POSITIONS = 1024
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    """A tokenizer trained on the generated statements and answers."""
    return learnt_tokenizer((prompt + answer for prompt, answer in corpus(2000, seed=0)), VOCABULARY)


def learnt_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """A byte-level BPE tokenizer trained on ``texts``, as JSON; it can encode any text. Texts begin with ``<s>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer.to_str()


def built_in_tokenizer() -> PreTrainedTokenizerFast:
    """The built-in tokenizer: texts begin with ``<s>``; the same in every run, so that pair ids are too."""
    return fast_tokenizer(_tokenizer_json())


def fast_tokenizer(json: str) -> PreTrainedTokenizerFast:
    """A tokenizer of ``learnt_tokenizer`` as transformers knows it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
    )


def built_in_model(seed: int = 0, *, width: int = 128, layers: int = 2, heads: int = 4) -> GPT2LMHeadModel:
    """A GPT-2 of a few hundred thousand parameters with random weights drawn from ``seed``: tied head, no dropout.

    The caller's random state is left as it was.
    """
    return small_model(built_in_tokenizer(), seed, width=width, layers=layers, heads=heads)


def small_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, width: int, layers: int, heads: int
) -> GPT2LMHeadModel:
    """The same for any tokenizer of ``fast_tokenizer``."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)
