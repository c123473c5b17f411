"""Pretraining on a folder of images in one call: a trial of the machine, a choice, and a training that resumes."""
