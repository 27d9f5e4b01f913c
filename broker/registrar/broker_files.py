"""Files for brokers: who may write and read which topics, from wire/topics.py's table.

A party writes the rows whose sender it is, a device only those with its own id. A device reads what the aggregator and the
registrar send, of rows with an id only its own, and not what waits for signatures. The operator's own parties read everything of
their federation. Who isn't a member yet may ask by a code, and read the answer, on a listener of its own.
"""

import json
import re
from pathlib import Path
from typing import Literal

from fleetgrad.wire.address import PORTS, Address
from fleetgrad.wire.membership import ROLES
from fleetgrad.wire.topics import ROOT, TABLE, Sender

Kind = Literal["mosquitto", "emqx", "aws-iot"]
ENROLLING = ("enrol", "enrolled")  # rows of devices that aren't members
SIGNING = ("candidate", "signature")  # rows between the aggregator and who signs heads with it
AWS_MOST = 2048  # characters of a policy document, white space apart (AWS IoT API reference, CreatePolicy)
AWS_REGION, AWS_ACCOUNT = 14, 12  # letters of the longest region's name, ap-southeast-1, and digits of an account


class BrokerFilesError(ValueError):
    """Files that the broker wouldn't take; the message says why."""


def written(sender: Sender, federation: str, device: str) -> list[str]:
    """Topic filters that a party may publish to; `device` stands for its own id where the sender is one."""
    rows = [t.path for name, t in TABLE.items() if t.sender == sender and name not in _closed(sender)]
    return [_filter(federation, path, device if sender == "device" else "+") for path in rows]


def read(federation: str, device: str) -> list[str]:
    """Topic filters that a device may subscribe to."""
    rows = [t.path for name, t in TABLE.items() if t.sender != "device" and name not in (*ENROLLING, *SIGNING)]
    return [_filter(federation, path, device) for path in rows]


def enrolling(federation: str) -> tuple[str, str]:
    """What a board without a certificate may write, and read."""
    first, second = (_filter(federation, TABLE[name].path, "+") for name in ENROLLING)
    return first, second


def _closed(sender: Sender) -> tuple[str, ...]:
    return ENROLLING if sender == "device" else ()


def _filter(federation: str, path: str, device: str) -> str:
    filled = [device if part == "{device}" else re.sub(r"{\w+}", "+", part) for part in path.split("/")]
    return "/".join([ROOT, federation, *filled])


def write(kind: Kind, federation: str, folder: Path, where: Address, seen_as: Path | None = None) -> list[Path]:
    """Writes the files for a broker into `folder`; `seen_as` is where the broker will find it. The paths written.

    `where` is the members' address, whose port is used if it has TLS; boards enrol at the next port.
    """
    if kind == "mosquitto":
        files = {
            "mosquitto.conf": mosquitto_conf(seen_as or folder.resolve(), where),
            "acl": mosquitto_acl(federation),
            "acl-enrol": mosquitto_enrol_acl(federation),
        }
    elif kind == "emqx":
        files = {"emqx-acl.conf": emqx_acl(federation)}
    else:
        files = {f"aws-iot-{role}.json": text for role, text in aws_policies(federation).items()}
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def mosquitto_conf(folder: Path, where: Address) -> str:
    """A configuration with two listeners, both TLS 1.3: for members with certificates, and for boards that enrol."""
    port, websockets = where.port if where.tls else PORTS["mqtts"], where.tls and where.websocket
    tls = f"certfile {folder}/server.pem\nkeyfile {folder}/server.key\ntls_version tlsv1.3\n"
    return f"""\
# mosquitto -c {folder}/mosquitto.conf         (started by root, mosquitto becomes the user mosquitto, who must be able to read these files)
per_listener_settings true

# The largest message is a chunk of up to 120 KiB and its header. What is larger isn't ours.
max_packet_size 262144
max_queued_messages 20000
max_queued_bytes 536870912
max_keepalive 1200
persistent_client_expiration 7d
# Nothing rests on the broker's memory: after a restart the aggregator publishes head and chunks again.
persistence false

# Members: who they are is what their certificate says. After a new crl.pem: SIGHUP (systemctl reload mosquitto).
listener {port}
{"protocol websockets" + chr(10) if websockets else ""}{tls}cafile {folder}/ca.pem
crlfile {folder}/crl.pem
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/acl

# Boards that enrol with a one-time code: they have no certificate yet and reach nothing but that. Remove it if no code is ever used.
listener {port + 1}
{tls}allow_anonymous true
acl_file {folder}/acl-enrol
"""


def mosquitto_acl(federation: str) -> str:
    """%u is the common name of the client's certificate."""
    lines = ["# Devices"]
    lines += [f"pattern write {topic}" for topic in written("device", federation, "%u")]
    lines += [f"pattern read {topic}" for topic in read(federation, "%u")]
    for role in ROLES:
        lines += ["", f"user {role}", f"topic read {ROOT}/{federation}/#"]
        if role != "operator":
            lines += [f"topic write {topic}" for topic in written(role, federation, "+")]  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def mosquitto_enrol_acl(federation: str) -> str:
    """For clients without a name."""
    ask, answer = enrolling(federation)
    return f"topic write {ask}\ntopic read {answer}\n"


def emqx_acl(federation: str) -> str:
    """Rules of EMQX's file authorizer; listeners need peer_cert_as_username = cn, and no_match = deny beside the file."""

    def rule(who: str, act: str, topics: list[str]) -> str:
        return f"{{allow, {who}, {act}, [{', '.join(json.dumps(t) for t in topics)}]}}."

    lines = [
        "%% EMQX: authorization.sources type file; authorization.no_match = deny;",
        "%% the TLS listener: verify = verify_peer, fail_if_no_peer_cert = true, mqtt.peer_cert_as_username = cn.",
    ]
    for role in ROLES:
        who = f'{{username, "{role}"}}'
        lines.append(rule(who, "subscribe", [f"{ROOT}/{federation}/#"]))
        if role != "operator":
            lines.append(rule(who, "publish", written(role, federation, "+")))  # type: ignore[arg-type]
    lines.append(rule("all", "publish", written("device", federation, "${username}")))
    lines.append(rule("all", "subscribe", read(federation, "${username}")))
    lines.append("{deny, all}.")
    return "\n".join(lines) + "\n"


def aws_policies(federation: str) -> dict[str, str]:
    """A policy for AWS IoT Core for each role; a device's thing is named by its id. REGION and ACCOUNT are to be filled in.

    Who may connect as which client is said once, by the thing; from there on the client's id, which is shorter, stands for it. What may
    be received is left to what may be subscribed to. Raises BrokerFilesError where a policy would be longer than AWS takes.
    """
    arn = "arn:aws:iot:REGION:ACCOUNT"

    def policy(client: str, writes: list[str], reads: list[str]) -> str:
        def allow(action: str | list[str], *resources: str) -> dict[str, object]:
            return {"Effect": "Allow", "Action": action, "Resource": list(resources)}

        def wild(topic: str) -> str:
            return topic.replace("+", "*").replace("#", "*")  # in a policy's topic, + and # are letters like any other

        statements = [
            allow("iot:Connect", f"{arn}:client/{client}"),
            allow(["iot:Publish", "iot:RetainPublish"], *(f"{arn}:topic/{wild(t)}" for t in writes)),
            allow("iot:Subscribe", *(f"{arn}:topicfilter/{wild(t)}" for t in reads)),
            allow("iot:Receive", f"{arn}:topic/{ROOT}/{federation}/*"),
        ]
        text = json.dumps({"Version": "2012-10-17", "Statement": [s for s in statements if s["Resource"]]}, indent=2)
        filled = text.replace("REGION", "r" * AWS_REGION).replace("ACCOUNT", "0" * AWS_ACCOUNT)
        if (length := len(re.sub(r"\s", "", filled))) > AWS_MOST:
            raise BrokerFilesError(
                f"policies for AWS IoT refused: one would have {length} characters, and AWS takes {AWS_MOST}: the federation's name, "
                f"of {len(federation)} letters, stands in it {filled.count(f'/{federation}/')} times"
            )
        return text

    everything, own = [f"{ROOT}/{federation}/#"], "${iot:ClientId}"
    return {
        "device": policy(
            "${iot:Connection.Thing.ThingName}", written("device", federation, own), read(federation, own)
        ),
        "aggregator": policy(f"aggregator-{federation}-*", written("aggregator", federation, "+"), everything),
        "registrar": policy(f"registrar-{federation}-*", written("registrar", federation, "+"), everything),
        "cosigner": policy(f"cosigner-{federation}-*", written("cosigner", federation, "+"), everything),
        "operator": policy("watch-*", [], everything),
    }
