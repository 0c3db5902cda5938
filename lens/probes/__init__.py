"""Probes: activations in, an `xarray.Dataset` out. They compute; they never draw."""
