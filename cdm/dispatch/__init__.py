"""Typed messages, and the router that hands them to their receivers."""
