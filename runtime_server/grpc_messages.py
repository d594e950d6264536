"""The messages of the protocol's gRPC form, as protobuf classes that are made here.

Numbers and types are those of ``open_inference_grpc.proto`` of the Open Inference Protocol and, for configuration,
statistics and the repository's index, of ``grpc_service.proto`` and ``model_config.proto`` of NVIDIA Triton. Left out
is what a server without streams and shared memory never reads nor writes; protobuf skips such fields. The last two are
of ``grpc.health.v1``. Names of messages do not cross the wire, and all are at the top here.

They are made when imported, not generated: generated code runs with two major versions of protobuf only, and claims its
names in the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

Fields = Mapping[str, tuple[int, str]]
"""Number and type by name. ``[X]`` is a repeated X, ``{X}`` a map from text to X."""

_NAMED: Fields = {"name": (1, "string"), "version": (2, "string")}
_TENSOR_METADATA: Fields = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "[int64]")}
_TENSOR: Fields = {**_TENSOR_METADATA, "parameters": (4, "{InferParameter}"), "contents": (5, "InferTensorContents")}

MESSAGES: Mapping[str, Fields] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "[string]")},
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "[string]"),
        "platform": (3, "string"),
        "inputs": (4, "[TensorMetadata]"),
        "outputs": (5, "[TensorMetadata]"),
    },
    "TensorMetadata": _TENSOR_METADATA,
    "InferParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "double_param": (4, "double"),
        "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "inputs": (5, "[InferInputTensor]"),
        "outputs": (6, "[InferRequestedOutputTensor]"),
        "raw_input_contents": (7, "[bytes]"),
    },
    "InferInputTensor": _TENSOR,
    "InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "{InferParameter}")},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "outputs": (5, "[InferOutputTensor]"),
        "raw_output_contents": (6, "[bytes]"),
    },
    "InferOutputTensor": _TENSOR,
    "ModelConfigRequest": _NAMED,
    "ModelConfigResponse": {"config": (1, "ModelConfig")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "backend": (17, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "[ModelInput]"),
        "output": (6, "[ModelOutput]"),
        "parameters": (14, "{ModelParameter}"),
    },
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "[int64]")},
    "ModelOutput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "[int64]")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelStatisticsRequest": _NAMED,
    "ModelStatisticsResponse": {"model_stats": (1, "[ModelStatistics]")},
    "ModelStatistics": {
        "name": (1, "string"),
        "version": (2, "string"),
        "last_inference": (3, "uint64"),
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
        "batch_stats": (7, "[InferBatchStatistics]"),
    },
    "InferStatistics": {
        "success": (1, "StatisticDuration"),
        "fail": (2, "StatisticDuration"),
        "queue": (3, "StatisticDuration"),
        "compute_input": (4, "StatisticDuration"),
        "compute_infer": (5, "StatisticDuration"),
        "compute_output": (6, "StatisticDuration"),
        "cache_hit": (7, "StatisticDuration"),
        "cache_miss": (8, "StatisticDuration"),
    },
    "InferBatchStatistics": {
        "batch_size": (1, "uint64"),
        "compute_input": (2, "StatisticDuration"),
        "compute_infer": (3, "StatisticDuration"),
        "compute_output": (4, "StatisticDuration"),
    },
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "RepositoryIndexResponse": {"models": (1, "[ModelIndex]")},
    "ModelIndex": {"name": (1, "string"), "version": (2, "string"), "state": (3, "string"), "reason": (4, "string")},
    "CheckRequest": {"service": (1, "string")},
    "CheckResponse": {"status": (1, "ServingStatus")},
}

ENUMS: Mapping[str, Mapping[str, int]] = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_UINT8": 2,
        "TYPE_INT8": 6,
        "TYPE_INT16": 7,
        "TYPE_FP32": 11,
        "TYPE_STRING": 13,
    },
    "ServingStatus": {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3},
}

_ONEOFS = {"InferParameter": "parameter_choice"}
"""Messages of which one field is set at most."""

_PACKAGE = "inference"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _typed(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind in ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


def _add_map(message: Any, field: Any, kind: str) -> None:
    """A map is a repeated message of key and value, which protobuf wants nested under this name."""
    entry = message.nested_type.add(name="".join(word.title() for word in field.name.split("_")) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    _typed(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), kind)
    field.label = _Field.LABEL_REPEATED
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package=_PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[name])
        for key, (number, kind) in fields.items():
            field = message.field.add(name=key, number=number, label=_Field.LABEL_OPTIONAL)
            if kind.startswith("{"):
                _add_map(message, field, kind[1:-1])
                continue
            if kind.startswith("["):
                field.label = _Field.LABEL_REPEATED
            elif name in _ONEOFS:
                field.oneof_index = 0
            _typed(field, kind.strip("[]"))
    return file


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()  # of our own
    pool.Add(_file())
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


CLASSES = _classes()
"""The protobuf class of every message, by name."""
