"""The page of the API: every service, message and enumeration of ``protos/``, with its comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

__all__ = ["protocol_page"]

_FILES = ("cbir/v1/search.proto", "cbir/v1/admin.proto")
_Field = descriptor_pb2.FieldDescriptorProto


def protocol_page(protos: Path) -> str:
    """The Markdown of the services first, then of the messages and enumerations, in the order of the files."""
    files = _compiled(protos)
    comments = [{tuple(place.path): place for place in file.source_code_info.location} for file in files]
    parts: list[str] = []
    for file, told in zip(files, comments, strict=True):
        for s, service in enumerate(file.service):
            parts += [f"\n## {service.name}\n", _text(told.get((6, s)))]
            for m, method in enumerate(service.method):
                asked = "stream " * method.client_streaming + _linked(method.input_type)
                told_back = "stream " * method.server_streaming + _linked(method.output_type)
                parts += [f"\n### {method.name}\n", f"{asked} → {told_back}\n", _text(told.get((6, s, 2, m)))]
    for file, told in zip(files, comments, strict=True):
        for m, message in enumerate(file.message_type):
            parts += [f"\n## {message.name}\n", _text(told.get((4, m))), *_fields(message, told, (4, m))]
        for e, enumeration in enumerate(file.enum_type):
            parts += [f"\n## {enumeration.name}\n", _text(told.get((5, e)))]
            parts.append("\n| value | number | |\n| --- | --- | --- |")
            for v, value in enumerate(enumeration.value):
                parts.append(f"| `{value.name}` | {value.number} | {_line(told.get((5, e, 2, v)))} |")
    return "\n".join(parts) + "\n"


def _compiled(protos: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    import grpc_tools
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "api.binpb"
        standard = Path(grpc_tools.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{protos}", f"-I{standard}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *_FILES]) != 0:
            raise RuntimeError("the definitions of the API do not compile: run `make proto`")
        compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return list(compiled.file)


def _text(place: Any) -> str:
    return "" if place is None else "\n".join(line.strip() for line in place.leading_comments.strip().splitlines())


def _line(place: Any) -> str:
    return " ".join(_text(place).split()).replace("|", "\\|")


def _linked(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if type_name.startswith(".cbir.v1.") else f"`{type_name.lstrip('.')}`"


def _fields(message: Any, told: Any, at: tuple[int, ...]) -> Iterator[str]:
    if not message.field:
        return
    yield "\n| field | type | number | |\n| --- | --- | --- | --- |"
    maps = {f".cbir.v1.{message.name}.{inner.name}": inner for inner in message.nested_type if inner.options.map_entry}
    for f, field in enumerate(message.field):
        if (entry := maps.get(field.type_name)) is not None:
            kind = f"map of {_kind(entry.field[0])} to {_kind(entry.field[1])}"
        else:
            kind = "repeated " * (field.label == _Field.LABEL_REPEATED) + _kind(field)
            kind = "optional " * field.proto3_optional + kind
        if field.HasField("oneof_index") and not field.proto3_optional:
            kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
        yield f"| `{field.name}` | {kind} | {field.number} | {_line(told.get((*at, 2, f)))} |"


def _kind(field: Any) -> str:
    if field.type in (_Field.TYPE_MESSAGE, _Field.TYPE_ENUM):
        return _linked(field.type_name)
    return str(_Field.Type.Name(field.type)).removeprefix("TYPE_").lower()
