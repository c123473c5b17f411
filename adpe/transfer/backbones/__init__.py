"""Encoders as backbones of mmsegmentation and mmdetection."""
