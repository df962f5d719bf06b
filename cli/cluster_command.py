"""``sleuth cluster``: prints or runs the commands that join several machines into one cluster."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sleuth.settings import read_layers

PORT = 6379


def cluster(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    head: Annotated[bool, typer.Option("--head", help="Start Ray's head here, in the foreground.")] = False,
    join: Annotated[str | None, typer.Option(help="Join the head at this host:port, in the foreground.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Show each node's code, CPUs, GPUs and index.")] = False,
    ip: Annotated[str | None, typer.Option(help="This machine's address, as reachable from the others.")] = None,
    port: Annotated[int, typer.Option(help="The head's port.")] = PORT,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, instead of the config's.")] = None,
) -> None:
    """Print the commands for the head, for every other machine, and for training; or run one of them here.

    The run folder, which holds checkpoints and index, must be on storage that all machines share. Next to it is the
    secret by which the machines authenticate each other.
    """
    from agent.cluster.config import ClusterSettings
    from agent.cluster.ray_cluster import require_ray, write_token
    from sleuth.errors import ConfigError
    from sleuth.layout import RunLayout
    from workflows.config import load_run_settings

    require_ray()
    settings = load_run_settings(config, set_ or [], out)
    token = (settings.cluster or ClusterSettings()).token or RunLayout(settings.out).token
    if head and join:
        raise ConfigError("--head and --join cannot both be given", "start one machine with --head, others with --join")
    if head:
        write_token(token)
        run_ray(head_arguments(ip or own_address(), port), token)
    elif join:
        if not token.exists():
            raise ConfigError(f"no secret at {token}", "is the run folder on shared storage, and is the head running?")
        run_ray(node_arguments(join, ip), token)
    elif check:
        from workflows.cluster import check_nodes

        for line in check_nodes(settings):
            typer.echo(line)
    else:
        for line in instructions(config, ip or own_address(), port, token, out, set_ or []):
            typer.echo(line)


def instructions(
    config: Path, ip: str, port: int, token: Path, out: Path | None, overrides: Sequence[str] = ()
) -> list[str]:
    """Instructions for the terminal; every line that is not a comment can be pasted into a shell."""
    from agent.cluster.ray_cluster import HEARTBEATS, cluster_environment, environment_lines

    options = [*(["--out", str(out)] if out else []), *(word for value in overrides for word in ("--set", value))]
    run, secret = shlex.join([str(config), *options]), shlex.quote(str(token))
    variables = environment_lines({**cluster_environment(token.resolve()), **HEARTBEATS})
    return [
        "# On every machine: the same code, and the run folder on storage that all of them share.",
        "# On the head (or: " + f"sleuth cluster {run} --head --ip {ip} --port {port}):",
        *variables,
        f"mkdir -p {shlex.quote(str(token.parent))}",
        f"test -s {secret} || (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > {secret})",
        shlex.join(["ray", *head_arguments(ip, port)]),
        f"# On every other machine (or: sleuth cluster {run} --join {ip}:{port}):",
        *variables,
        shlex.join(["ray", *node_arguments(f"{ip}:{port}", None)]),
        "# On the head, once the nodes have joined:",
        f"sleuth cluster {run} --check --set cluster.address={ip}:{port}",
        f"sleuth {_command(config)} {run} --set cluster.address={ip}:{port}",
    ]


def _command(config: Path) -> str:
    return "cotrain" if "cotrain" in read_layers(config) else "train"


def head_arguments(ip: str, port: int) -> list[str]:
    return [
        "start",
        "--head",
        "--block",
        f"--node-ip-address={ip}",
        f"--port={port}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]


def node_arguments(address: str, ip: str | None) -> list[str]:
    own = [f"--node-ip-address={ip}"] if ip else []
    return ["start", "--block", f"--address={address}", *own, "--disable-usage-stats"]


def run_ray(arguments: list[str], token: Path) -> None:
    """Replace this process by ``ray`` in the foreground; Ctrl-C ends it and everything that it started."""
    import sys

    from agent.cluster.ray_cluster import HEARTBEATS, cluster_environment

    program = Path(sys.executable).parent / "ray"
    environment = {**os.environ, **cluster_environment(token.resolve()), **HEARTBEATS}
    os.execve(program, [str(program), *arguments], environment)


def own_address() -> str:
    """The address from which this machine would reach others; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
