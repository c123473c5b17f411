"""Backbones, necks and heads in mmsegmentation and mmdetection."""
