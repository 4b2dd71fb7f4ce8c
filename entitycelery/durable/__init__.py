"""Workflows: durable functions. The body is run again from the top and its remembered steps are not."""
