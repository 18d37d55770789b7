"""Tests of cdm."""
