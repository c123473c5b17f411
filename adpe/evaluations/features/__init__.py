"""Features of a frozen encoder, as evaluations read them."""
