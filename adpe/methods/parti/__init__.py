"""The image tokenizer of ViT-VQGAN (arXiv 2110.04627) and sequence models over its codes (Parti, arXiv 2206.10789)."""
