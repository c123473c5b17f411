"""The encoder and its parts: attention, position encodings, named sizes, layer-wise decay."""
