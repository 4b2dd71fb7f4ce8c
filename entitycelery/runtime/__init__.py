"""Handling messages: drains, turns, and the watch over long ones."""
