"""What every other room stands on: errors, progress, cache, atomic files, provenance, safe token text.

Nothing here imports torch, transformers, xarray or plotly, so that `import lens` stays light.
"""
