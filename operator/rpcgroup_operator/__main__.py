"""`python -m rpcgroup_operator`: the operator's command line."""

from __future__ import annotations

import asyncio
import logging
import sys
import warnings

import click
from kubernetes.aio.config import ConfigException

from rpcgroup.errors import RendezvousError
from rpcgroup_operator.api import ApiError
from rpcgroup_operator.process import run
from rpcgroup_operator.settings import Settings


@click.command(context_settings={"auto_envvar_prefix": "RPCGROUP_OPERATOR", "show_default": True})
@click.option("--etcd", required=True, help="HOST:PORT[,HOST:PORT...] of the etcd in which the workers meet.")
@click.option("--etcd-for-workers", default="", help="The same as workers reach it, if that differs.")
@click.option(
    "--etcd-secret", default="", help="Secret for the chart's etcd: its certificates are made there."
)
@click.option("--etcd-hosts", default="", help="Comma-separated names for which these certificates are.")
@click.option(
    "--etcd-auth/--no-etcd-auth", default=False, help="Turn authentication on in the chart's etcd, as root."
)
@click.option(
    "--secret", default="", help="Secret of the operator's own, made if missing. Empty: groups get no users."
)
@click.option("--watch-namespaces", default="", help="Comma-separated; empty: all.")
@click.option("--workers", default=32, help="Groups reconciled at once.")
@click.option(
    "--leader-elect/--no-leader-elect", default=True, help="Wait for a Lease before doing anything."
)
@click.option(
    "--lease-name", default="rpcgroup-operator", help="Of the Lease; each installation has its own."
)
@click.option(
    "--lease-namespace", default="", help="Of the Lease and the Secrets; default: that of the operator's pod."
)
@click.option("--liveness-port", default=8080, help="Of /healthz.")
@click.option("--metrics-port", default=9090, help="Of /metrics, for Prometheus.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
def main(
    etcd: str,
    etcd_for_workers: str,
    etcd_secret: str,
    etcd_hosts: str,
    etcd_auth: bool,
    secret: str,
    watch_namespaces: str,
    workers: int,
    leader_elect: bool,
    lease_name: str,
    lease_namespace: str,
    liveness_port: int,
    metrics_port: int,
    log_level: str,
) -> None:
    """Reconcile RPCGroup resources into pods."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr
    )
    silence()
    if etcd_auth and not secret:
        raise click.UsageError("--etcd-auth needs --secret: root's password is kept there")
    settings = Settings(
        etcd=_parts(etcd),
        etcd_for_workers=etcd_for_workers,
        etcd_secret=etcd_secret,
        etcd_hosts=_parts(etcd_hosts),
        etcd_auth=etcd_auth,
        secret=secret,
        watch_namespaces=_parts(watch_namespaces),
        workers=workers,
        leader_election=leader_elect,
        lease_name=lease_name,
        lease_namespace=lease_namespace,
        liveness_port=liveness_port,
        metrics_port=metrics_port,
    )
    try:
        asyncio.run(run(settings))
    except ConfigException as exc:
        raise click.ClickException(f"no cluster is known: {exc} Set KUBECONFIG, or run it in a pod.") from exc
    except ApiError as exc:
        raise click.ClickException(f"the API server refuses what the operator needs: {exc}") from exc
    except RendezvousError as exc:
        raise click.ClickException(str(exc)) from exc


def silence() -> None:
    """What the libraries say in good order is no news, and hides what is."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for each probe
    # In a pod there is no kubeconfig, and the account's token is what is meant.
    warnings.filterwarnings("ignore", "kube_config_path not provided", UserWarning)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


if __name__ == "__main__":
    main()
