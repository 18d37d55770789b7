"""The benchmark suite: ``python -m tests.bench [NAME…] [--json] [--quick]``. See README.md beside this file."""
