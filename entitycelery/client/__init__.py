"""Sending and asking from outside a turn."""
