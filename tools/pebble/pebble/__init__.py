"""Pebble: the generator, the trainer and the evaluator of the built-in model."""
