"""Which layer of a quantised bundle costs which task how much, and what to keep in float."""
