"""What the package exports; `cdm` takes it from here when it is first asked for."""

from cdm.dispatch.messages import (
    MESSAGES,
    Cause,
    Connected,
    Disconnected,
    FenceRenewal,
    IntentChanged,
    KeyedMessage,
    KeyRejected,
    LeaderChange,
    Message,
    NodeDied,
    NodeJoined,
    NodeLeft,
    NodeMissing,
    RejectedKeyRemoved,
    Tick,
    ValuePut,
    ValueRejected,
    ValueRemove,
    WriteFailed,
    Written,
)
from cdm.dispatch.router import Router, receiver
from cdm.errors import CdmError, InvalidArtifact, InvalidBlueprint, InvalidKey, InvalidNodeId, ModelError, WiringError
from cdm.manager.active import Active, Dormant
from cdm.manager.manager import ClusterDeploymentManager
from cdm.manager.outbox import Order, Outbox
from cdm.manager.policy import Policy
from cdm.manager.reconciliation import Command
from cdm.manager.topology import Missing, Registered, Topology
from cdm.model.artifact import Artifact, NodeId, node_id
from cdm.model.blueprint import Blueprint, Overrides
from cdm.model.keys import BlueprintKey, FenceKey, IntentKey, Key, LeaseKey, NodeKey, SliceKey, StatusKey, encode
from cdm.model.node import Fence, Intent, Lease, Registration, Role, Schedule
from cdm.model.slice import TRANSITIONS, SliceState, SliceValue, legal
from cdm.model.status import Condition, Status

__all__ = [
    "MESSAGES",
    "TRANSITIONS",
    "Active",
    "Artifact",
    "Blueprint",
    "BlueprintKey",
    "Cause",
    "CdmError",
    "ClusterDeploymentManager",
    "Command",
    "Condition",
    "Connected",
    "Disconnected",
    "Dormant",
    "Fence",
    "FenceKey",
    "FenceRenewal",
    "Intent",
    "IntentChanged",
    "IntentKey",
    "InvalidArtifact",
    "InvalidBlueprint",
    "InvalidKey",
    "InvalidNodeId",
    "Key",
    "KeyRejected",
    "KeyedMessage",
    "LeaderChange",
    "Lease",
    "LeaseKey",
    "Message",
    "Missing",
    "ModelError",
    "NodeDied",
    "NodeId",
    "NodeJoined",
    "NodeKey",
    "NodeLeft",
    "NodeMissing",
    "Order",
    "Outbox",
    "Overrides",
    "Policy",
    "Registered",
    "Registration",
    "RejectedKeyRemoved",
    "Role",
    "Router",
    "Schedule",
    "SliceKey",
    "SliceState",
    "SliceValue",
    "Status",
    "StatusKey",
    "Tick",
    "Topology",
    "ValuePut",
    "ValueRejected",
    "ValueRemove",
    "WiringError",
    "WriteFailed",
    "Written",
    "encode",
    "legal",
    "node_id",
    "receiver",
]
