"""What methods predict: pixels, spectra, tokens."""
