"""Labels from what a cloud says of an instance, asked of a server that answers as each of them documents."""

from __future__ import annotations

import json
from functools import partial

import pytest

from cdm import clock
from cdm.node.metadata import CLOUDS, metadata_labels
from tests.harness.nodes import nodes_on
from tests.harness.servers import NatsServer
from tests.harness.sites import Page, Request, Site, site
from tests.harness.waiting import SLACK
from tests.harness.wire import raw

pytestmark = [pytest.mark.anyio, pytest.mark.quick]

EC2 = {
    "accountId": "123456789012", "architecture": "x86_64", "availabilityZone": "us-west-2b", "billingProducts": None,
    "devpayProductCodes": None, "marketplaceProductCodes": ["1abc2defghijklm3nopqrs4tu"], "imageId": "ami-5fb8c835",
    "instanceId": "i-1234567890abcdef0", "instanceType": "t2.micro", "kernelId": None,
    "pendingTime": "2016-11-19T16:32:11Z", "privateIp": "10.158.112.84", "ramdiskId": None, "region": "us-west-2",
    "version": "2017-09-30",
}  # fmt: skip
AZURE = {
    "azEnvironment": "AZUREPUBLICCLOUD", "location": "westeurope", "name": "examplevmname", "osType": "Linux",
    "platformFaultDomain": "36", "provider": "Microsoft.Compute", "vmSize": "Standard_A3", "zone": "1",
    "tagsList": [{"name": "azsecpack", "value": "nonprod"}], "publicKeys": [],
}  # fmt: skip


def only_with(header: str, value: str, body: str) -> Page:
    """A page that refuses requests without this header."""

    def answer(request: Request) -> None:
        good = request.headers.get(header) == value
        request.say(200 if good else 401, body.encode() if good else b"", {})

    return answer


def is_aws(site: Site) -> None:
    """Answer as EC2 does to those who ask with a session token."""

    def token(request: Request) -> None:
        lasts = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        good = request.command == "PUT" and lasts.isdigit() and 1 <= int(lasts) <= 21_600
        request.say(200 if good else 400, b"AQAEAOtoken==" if good else b"", {})

    site.pages["/latest/api/token"] = token
    page = only_with("X-aws-ec2-metadata-token", "AQAEAOtoken==", json.dumps(EC2, indent=2))
    site.pages["/latest/dynamic/instance-identity/document"] = page


def is_gcp(site: Site) -> None:
    """Answer as Compute Engine does."""
    for name, value in {"zone": "zones/europe-west3-b", "machine-type": "machineTypes/e2-standard-4"}.items():
        page = only_with("Metadata-Flavor", "Google", f"projects/555555/{value}")
        site.pages[f"/computeMetadata/v1/instance/{name}"] = page


def is_azure(site: Site, **fields: str) -> None:
    """Answer as Azure does."""

    def answer(request: Request) -> None:
        good = request.headers.get("Metadata") == "true" and "api-version=20" in request.path
        request.say(200 if good else 400, json.dumps({**AZURE, **fields}).encode(), {})

    site.pages["/metadata/instance/compute"] = answer


def is_hetzner(site: Site) -> None:
    """Answer as Hetzner Cloud does."""
    site.says("/hetzner/v1/metadata/region", "eu-central")
    site.says("/hetzner/v1/metadata/availability-zone", "fsn1-dc14")


ANSWERS = {
    "aws": (is_aws, {"region": "us-west-2", "zone": "us-west-2b", "instance-type": "t2.micro"}),
    "gcp": (is_gcp, {"region": "europe-west3", "zone": "europe-west3-b", "instance-type": "e2-standard-4"}),
    "azure": (is_azure, {"region": "westeurope", "zone": "westeurope-1", "instance-type": "Standard_A3"}),
    "hetzner": (is_hetzner, {"region": "eu-central", "zone": "fsn1-dc14"}),
}


@pytest.mark.parametrize("provider", CLOUDS)
async def test_a_cloud_says_where_the_instance_is(provider: str) -> None:
    answers, labels = ANSWERS[provider]
    with site() as cloud:
        answers(cloud)
        assert await metadata_labels(cloud.url, 5 * SLACK) == {"provider": provider, **labels}


async def test_an_instance_in_no_zone_gets_no_label_for_it() -> None:
    with site() as cloud:
        is_azure(cloud, zone="", vmSize="not a value of a label")
        assert await metadata_labels(cloud.url, 5 * SLACK) == {"provider": "azure", "region": "westeurope"}


async def test_nobody_is_believed_who_answers_everything_in_another_form() -> None:
    with site() as cloud:
        for path in (
            "/latest/api/token", "/latest/dynamic/instance-identity/document", "/metadata/instance/compute",
            "/computeMetadata/v1/instance/zone", "/hetzner/v1/metadata/region",
        ):  # fmt: skip
            cloud.says(path, "<html>Please log in</html>")
        assert await metadata_labels(cloud.url, 5 * SLACK) == {}


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://", "nonsense", "http://ä:x"])
async def test_where_nobody_answers_there_are_no_labels(address: str) -> None:
    assert await metadata_labels(address, 5 * SLACK) == {}


async def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    with site() as cloud:

        def hang(_: Request) -> None:
            cloud.over.wait(60)

        cloud.pages["/hetzner/v1/metadata/region"] = hang
        began = clock.now()
        assert await metadata_labels(cloud.url, 0.3) == {}
        assert clock.now() - began < 30


async def test_a_node_registers_them_and_what_its_operator_says_counts_more(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdm.node.node.metadata_labels", partial(metadata_labels, patience=5 * SLACK))
    with site() as cloud:
        is_gcp(cloud)
        async with raw(server) as user, nodes_on(server) as nodes:
            await nodes.start("n1", labels={"zone": "mine"}, labels_from_metadata=True, metadata_address=cloud.url)
            said = (await user.registrations())["n1"].value["labels"]
    assert said["provider"] == "gcp"
    assert said["region"] == "europe-west3"
    assert said["zone"] == "mine"
