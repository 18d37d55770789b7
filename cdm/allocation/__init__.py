"""Where instances go, and which of them: pure, and the same for whoever asks. The manager decides by it, and commands
explain by it. What a strategy of one's own needs is exported here.
"""

from cdm.allocation.site import Site
from cdm.allocation.strategy import GROUP, AllocationStrategy, Rank
from cdm.model.artifact import Artifact

__all__ = ["GROUP", "AllocationStrategy", "Artifact", "Rank", "Site"]
