"""The version of cdm. The package's metadata takes it from here: to ask the metadata for it takes 12 ms."""

VERSION = "0.1.0"
