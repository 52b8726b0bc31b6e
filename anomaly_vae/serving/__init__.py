"""Detectors as MLflow models: saved, tracked, registered, served, and run over files."""
