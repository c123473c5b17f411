"""Methods that drop, shift, crop or randomise positions."""
