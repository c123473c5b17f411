"""Networks beside the one encoder: GC ViT, SP-ViT, saliency-guided attention."""
