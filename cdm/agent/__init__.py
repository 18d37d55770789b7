"""Obeys the commands of one node."""
