"""``cdm scale`` and ``cdm restart``: edits of one version's blueprint."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from cdm.cli.following import run_edit
from cdm.cli.lasting import WAIT, WaitOptions
from cdm.cli.options import FLAG, whole
from cdm.cli.parameters import ArtifactName
from cdm.cli.plans import restarting, scaling, stamp
from cdm.model.rules_typed import MOST_INSTANCES


def scale(
    artifact: ArtifactName,
    instances: Annotated[int, whole(most=MOST_INSTANCES)],
    /,
    *,
    wait: Annotated[bool, FLAG] = False,
    options: WaitOptions = WAIT,
) -> int:
    """Have another number of instances of a version.

    Parameters
    ----------
    instances
        How many.
    wait
        Wait until they serve.
    """
    return run_edit(options, artifact.service, partial(scaling, artifact=artifact, instances=instances), wait=wait)


def restart(
    artifact: ArtifactName,
    /,
    *,
    wait: bool = True,
    options: WaitOptions = WAIT,
) -> int:
    """Replace every instance of a version by a new one, as a rollout does.

    Parameters
    ----------
    wait
        Wait until all new ones serve, or are taken back.
    """
    return run_edit(options, artifact.service, partial(restarting, artifact=artifact, stamp=stamp()), wait=wait)
