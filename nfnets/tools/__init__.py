"""Programs: one module for each command of `python -m nfnets`."""
