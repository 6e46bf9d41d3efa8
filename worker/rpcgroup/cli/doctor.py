"""`rpcgroup doctor`."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict

import click

from rpcgroup.cli.checks import examine

__all__ = ["command"]

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(output: str) -> None:
    """Check what usually goes wrong on this machine or in this pod, and say how to mend it.

    It looks at the same environment variables as a worker does. Exit code 1 where something must be mended.
    """
    logging.getLogger("rpcgroup").setLevel(logging.CRITICAL)  # the findings say it all
    findings = []
    for finding in examine(os.environ):
        findings.append(finding)
        if output == "table":
            verdict = click.style(f"{finding.verdict:<4}", fg=COLOURS[finding.verdict])
            click.echo(f"{verdict}  {finding.check}: {finding.text}")
            if finding.mend:
                click.echo(f"      -> {finding.mend}")
    if output == "json":
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    sys.exit(1 if any(finding.verdict == "fail" for finding in findings) else 0)
