"""The ptychography experiment and its data: NumPy and SciPy only, no torch."""
