"""From logits to tokens: processors, filters, and the selection of the next token."""
