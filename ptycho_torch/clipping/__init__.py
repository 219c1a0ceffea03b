"""Gradient clipping for any training loop: nine algorithms, one call, one record. Needs torch alone."""
