"""``cbir doctor``: what is installed, what models would run on and why, and whether the server answers."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cbir.client import CbirClientError, MemberInfo
from cbir.client.cli.configuration import VARIABLES, config_file
from cbir.client.cli.connection import add_connection_arguments, connection
from cbir.client.cli.installation import DISTRIBUTION, how_to_install
from cbir.client.cli.terminal import printable

__all__ = ["EXAMPLES", "USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (OSError,)
EXAMPLES = (("cbir doctor", "look at everything"), ("cbir doctor --json > doctor.json", "for a report of a fault"))

#: The module that knows what models run on, where the indexer's dependencies are installed.
_RUNTIME = "cbir.core.ensemble.runtime.choice"
_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("-", "dim")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--no-server", action="store_true", help="do not ask the server")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and tell; 1 where something that was asked about does not work."""
    document: dict[str, Any] = {
        "version": metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "extras": _extras(),
        "runtime": _runtime(),
        "settings": _settings(),
    }
    if not args.no_server:
        document["server"] = _server(args)
    if args.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print(document)
    return 0 if document.get("server", {}).get("answers", True) else 1


def _extras() -> dict[str, Any]:
    """By extra: the packages that it wants, with the versions that are installed; and how to install it."""
    found: dict[str, Any] = {}
    for requirement in metadata.requires(DISTRIBUTION) or ():
        name = re.split(r"[ ;<>=!~\[(]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if name == DISTRIBUTION:
            continue
        packages = found.setdefault(extra[1] if extra else "client", {})
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Where a package is wanted on some platforms only and is not here, this is taken for another platform.
            if not re.search(r"sys_platform|platform_machine", requirement):
                packages[name] = None
    return {
        extra: {
            "complete": None not in packages.values(),
            "packages": packages,
            "install": how_to_install(None if extra == "client" else extra),
        }
        for extra, packages in found.items()
    }


def _runtime() -> dict[str, Any]:
    """What models would run on here, and why."""
    try:
        choice = importlib.import_module(_RUNTIME)
        runtime = choice.choose_runtime("auto", "auto")
        precisions = [str(precision) for precision in choice.choose_precisions(runtime, "auto")]
    except ModuleNotFoundError as error:
        return {"runtime": None, "why": f"{error.name} is not installed: {how_to_install('indexer')}"}
    except Exception as error:  # noqa: BLE001 - whatever a driver does, it is what is to be told
        return {"runtime": None, "why": f"{type(error).__name__}: {error}"}
    return {"runtime": runtime, "precisions": precisions, "why": _why(runtime), "devices": _devices(runtime)}


def _why(runtime: str) -> str:
    files = [name for name in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg") if Path(name).exists()]
    if runtime == "torch-cuda":
        return "torch can use a CUDA GPU"
    no_gpu = (
        f"{files[0]} is there, but torch finds no CUDA GPU that it can use: look at nvidia-smi"
        if files
        else "no device file of an NVIDIA GPU (/dev/nvidia0) is there"
    )
    second = "OpenVINO is installed" if runtime == "openvino" else "OpenVINO is not installed"
    return f"{no_gpu}; {second}"


def _devices(runtime: str) -> list[str]:
    if runtime == "torch-cuda":
        import torch  # type: ignore[import-not-found,unused-ignore]

        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if runtime == "openvino":
        core = importlib.import_module("cbir.core.ensemble.runtime.openvino").openvino_core()
        return [str(core.get_property("CPU", "FULL_DEVICE_NAME"))]
    return [platform.processor() or platform.machine()]


def _settings() -> dict[str, Any]:
    file = config_file(os.environ)
    # Names only: values may be secrets.
    return {
        "file": str(file),
        "file_is_there": file.is_file(),
        "environment": [variable for variable in VARIABLES.values() if variable in os.environ],
    }


def _server(args: argparse.Namespace) -> dict[str, Any]:
    from cbir.client import Client

    try:
        settings = connection(args)
        with Client(**settings) as client:
            info = client.index_info()
            return {
                "target": client.target, "answers": True, "version": info.server_version, "index": info.version,
                "images": info.images, "members": {member.name: _computed_by(member) for member in info.members},
            }  # fmt: skip
    except (CbirClientError, ValueError, TypeError, OSError) as error:
        return {"target": args.target or settings_target(), "answers": False, "why": str(error)}


def _computed_by(member: MemberInfo) -> str:
    """How a member's model is computed, such as "openvino, bf16, 2 threads"; an older server tells less."""
    threads = f"{member.threads} thread{'s' * (member.threads != 1)}" if member.threads else ""
    return ", ".join(filter(None, (member.runtime, member.precision, threads)))


def settings_target() -> str:
    """The target that is set, for a complaint about settings that cannot be used."""
    return os.environ.get("CBIR_TARGET") or "as the settings say"


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def line(good: bool | None, what: str, more: str = "") -> None:
        mark, style = _MARKS[good]
        console.print(Text(f"{mark:<3}", style=style) + Text(printable(what)), Text(printable(more), style="dim"))

    line(True, f"ensemble-cbir {document['version']}", f"Python {document['python']}, {document['system']}")
    for extra, facts in document["extras"].items():
        absent = [name for name, version in facts["packages"].items() if version is None]
        if not absent:
            line(True, extra, f"{len(facts['packages'])} packages")
        else:
            line(None, extra, f"{', '.join(absent)} not installed: {facts['install']}")
    runtime = document["runtime"]
    if runtime["runtime"] is None:
        line(None, "models do not run here", runtime["why"])
    else:
        computed = f"{runtime['runtime']} ({', '.join(runtime['precisions'])}) on {', '.join(runtime['devices'])}"
        line(True, f"models run on {computed}", runtime["why"])
    settings = document["settings"]
    state = "read" if settings["file_is_there"] else "not there"
    line(None, f"settings: {settings['file']} ({state})", f"environment: {', '.join(settings['environment']) or '-'}")
    server = document.get("server")
    if server and server["answers"]:
        line(True, f"server {server['target']}", f"{server['images']} images, index {server['index']}")
        for name, how in server["members"].items():
            line(None, f"member {name}", how)
    elif server:
        line(False, f"server {server['target']}", server["why"])
