"""What is trained on frozen features."""
