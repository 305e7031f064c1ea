"""The `meterhouse portal` command."""

import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

ENV_TOKEN = "METERHOUSE_PORTAL_TOKEN"
TOKEN_LENGTH = 16

portal = typer.Typer(
    help="The web page for operators: usage, cost and what needs a look.", no_args_is_help=True, add_completion=False
)


@portal.callback()
def _portal() -> None:
    """The web page for operators: usage, cost and what needs a look."""


@portal.command()
def serve(
    data: Annotated[Path | None, typer.Option(help="Data directory of `up` (METERHOUSE_DATA).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
) -> None:
    """Serve the portal and /healthz until stopped.

    The page shows every customer's figures, so it opens only with the portal's token: METERHOUSE_PORTAL_TOKEN, or the
    one that `meterhouse up` made for its data directory. Open http://HOST:PORT/?token=TOKEN once per browser.
    """
    import uvicorn

    from meterhouse_portal.app import build
    from meterhouse_store.settings import NoData, load_existing

    try:
        settings = load_existing(data)
    except NoData as missing:
        typer.echo(str(missing), err=True)
        raise typer.Exit(1) from None
    token = portal_token(settings.data)
    if token is None:
        typer.echo(
            f"The portal has no token: set {ENV_TOKEN} to a secret of at least {TOKEN_LENGTH} characters, or start it "
            f"with `meterhouse up --data {settings.data}`, which makes one.",
            err=True,
        )
        raise typer.Exit(1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    typer.echo(f"portal: http://{host}:{port}/ (with /?token= once), health: http://{host}:{port}/healthz")
    # No access log: the address of the first visit carries the token.
    uvicorn.run(
        build(settings, token), host=host, port=port, log_level="warning", access_log=False, server_header=False
    )


def portal_token(data: Path) -> str | None:
    """The secret of the page: the environment's, else the one of the data directory; None for none or a short one."""
    token = os.environ.get(ENV_TOKEN)
    if not token:
        try:
            token = json.loads((data / "run" / "secrets.json").read_text()).get("portal_token")
        except (FileNotFoundError, ValueError):
            token = None
    return token if token and len(token) >= TOKEN_LENGTH else None
