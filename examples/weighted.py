from cdm.allocation import Artifact, Rank, Site


class Weighted:
    name = "weighted"

    def rank(self, artifact: Artifact, site: Site, count: int) -> Rank:
        # A node with the label power=3 gets three instances for each one of a node without.
        return (count + 1) / float(site.labels.get("power", 1))
