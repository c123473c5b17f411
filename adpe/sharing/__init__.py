"""Encoders as folders for the Hugging Face hub: weights, configs for other libraries, and a model card."""
