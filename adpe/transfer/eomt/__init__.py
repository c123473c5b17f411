"""EoMT, the encoder-only mask transformer (arXiv 2503.19108), as a trainable segmenter of mmseg."""
