"""`python -m examples.digits server|trainer`: what the manifest's containers run."""

from __future__ import annotations

import click

from examples.digits import server, trainer


@click.group()
def main() -> None:
    """Train a classifier of handwritten digits with a parameter server and elastic trainers."""


@main.command("server")
@click.option(
    "--target", default=0.97, show_default=True, help="Accuracy on the held-out images to end with."
)
@click.option(
    "--at-least", default=0.0, show_default=True, help="Seconds to go on even if the target is met."
)
@click.option("--at-most", default=80.0, show_default=True, help="Seconds after which it is given up.")
def serve(target: float, at_least: float, at_most: float) -> None:
    server.serve(target, at_least, at_most)


@main.command("trainer")
def train() -> None:
    trainer.train()


if __name__ == "__main__":
    main()
