import threading
from collections.abc import Collection
from pathlib import Path

from sites import Sites

from cdm import NodeId, SliceKey
from cdm.runtimes import Surroundings, Work
from cdm.testing import Deed, Manifest, RuntimeConformance


class TestSites(RuntimeConformance):
    def make_runtime(self, surroundings: Surroundings) -> Sites:
        return Sites(surroundings)

    def work(self, folder: Path, deed: Deed, key: SliceKey, manifest: Manifest) -> Work | None:
        # A site only serves; it never ends by itself, and cannot fail.
        return Work(key, folder, manifest) if deed is Deed.SERVE else None

    def running(self, node: NodeId) -> Collection[str]:
        return [each.name for each in threading.enumerate() if "serve_forever" in each.name]
