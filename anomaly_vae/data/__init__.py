"""Tables in: typed columns as tensors, files as streams of frames."""
