"""Text in, activations out: opening models and running them.

A `Model` wraps a transformers causal language model, never a copy of one; a `Run` holds what one
forward pass gave. This room imports torch and transformers, and nothing that draws.
"""
