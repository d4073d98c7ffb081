"""Language-model heads that keep their logits to themselves."""
