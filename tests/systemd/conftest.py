"""What is in the folder ``within`` is run by `test_systemd` only."""

from __future__ import annotations

collect_ignore = ["within"]
