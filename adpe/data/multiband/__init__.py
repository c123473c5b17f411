"""Images of any number of bands: a pretraining data set, and labelled ones for probes."""
