"""Whether a tokenizer's ids fit a model."""

from __future__ import annotations

import warnings
from typing import Any

from dyn_probe.errors import BadInput


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Check that every id of the tokenizer has a row in the model's embedding and in its head.

    A model may have more ids (vocabularies are padded); more than twice as many cause a warning.

    Raises:
        BadInput: the tokenizer has ids that the model does not.
    """
    highest = max(_highest_id(tokenizer), len(tokenizer) - 1)
    sizes = {
        name: _weight_rows(getattr(model, getter, None))
        for name, getter in (
            ("input embedding", "get_input_embeddings"),
            ("output head", "get_output_embeddings"),
        )
    }
    rows = {name: size for name, size in sizes.items() if size is not None}
    small = [f"{name} with {size} rows" for name, size in rows.items() if size <= highest]
    if small:
        raise BadInput(
            f"tokenizer and model do not match: the tokenizer's highest token id is {highest}, "
            f"the model has an {' and an '.join(small)}; load the tokenizer that belongs to the model, "
            f"or call model.resize_token_embeddings({highest + 1})"
        )
    if rows and min(rows.values()) > 2 * (highest + 1):
        warnings.warn(
            f"the model has {min(rows.values())} token ids, the tokenizer only {highest + 1}: "
            "is it the model's own tokenizer?",
            stacklevel=2,
        )


def _highest_id(tokenizer: Any) -> int:
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return max(vocabulary.values(), default=-1)


def _weight_rows(getter: Any) -> int | None:
    """Rows of the weight of the module that ``getter`` gives, if it gives one."""
    weight = getattr(getter() if getter else None, "weight", None)
    return None if weight is None else int(weight.shape[0])
