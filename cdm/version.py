"""The version of cdm, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("cdm")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"
