"""Image sources, multi-crop and the data sets of the benchmark tasks."""
