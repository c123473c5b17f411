"""Self-distillation against the numbers of its references."""
