"""The fields of the messages of NVIDIA's gRPC client, as JSON; runs where ``tritonclient[grpc]`` is installed."""

from __future__ import annotations

import json
import sys
from typing import Any


def fields(message: Any) -> dict[str, Any]:
    """Number, type, whether it is repeated, and the oneof of every field; messages and enumerations by full name."""
    return {
        field.name: [
            field.number,
            field.type,
            field.is_repeated,
            None if field.containing_oneof is None else field.containing_oneof.name,
            (field.message_type or field.enum_type).full_name if field.message_type or field.enum_type else None,
        ]
        for field in message.fields
    }


def walk(messages: Any) -> dict[str, Any]:
    """All messages, those inside others too."""
    found = {}
    for message in messages:
        found[message.full_name] = fields(message)
        found.update(walk(message.nested_types))
    return found


def enums(messages: Any) -> dict[str, Any]:
    """All enumerations inside messages."""
    found = {}
    for message in messages:
        found.update({one.full_name: {value.name: value.number for value in one.values} for one in message.enum_types})
        found.update(enums(message.nested_types))
    return found


def main() -> None:
    """Prints what there is."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    told: dict[str, Any] = {"messages": {}, "enums": {}}
    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        messages = list(file.message_types_by_name.values())
        told["messages"].update(walk(messages))
        told["enums"].update(enums(messages))
        for one in file.enum_types_by_name.values():
            told["enums"][one.full_name] = {value.name: value.number for value in one.values}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
