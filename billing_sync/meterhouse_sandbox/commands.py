"""`meterhouse sandbox`: a local Stripe and a local model provider to try things with."""

from pathlib import Path
from typing import Annotated

import typer

sandbox = typer.Typer(
    help="A local Stripe and a local model provider, to try and test with.", no_args_is_help=True, add_completion=False
)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]


@sandbox.command()
def stripe(
    port: Port,
    host: Host = "127.0.0.1",
    data: Annotated[
        Path | None, typer.Option(help="Directory that keeps the state; without it nothing is kept.")
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Where events are delivered to, signed.")] = None,
    webhook_secret: Annotated[
        str | None, typer.Option(help="What they are signed with.", envvar="STRIPE_WEBHOOK_SECRET")
    ] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Refuse what is above Stripe's published rate limits, as Stripe does.")
    ] = False,
) -> None:
    """Serve the part of Stripe's API that invoices and billing meters need, statefully, to the real stripe SDK.

    Point Meterhouse at it with METERHOUSE_STRIPE_URL=http://127.0.0.1:PORT and STRIPE_API_KEY=sk_test_anything.
    A customer pays on the invoice's page: `/` lists the invoices, `meterhouse bill status` has their addresses. Or by
    POST /_sandbox/pay/INVOICE. A webhook that is not taken is reported on standard error and sent again.
    """
    from meterhouse_sandbox.stripe_server import serve

    if webhook_url is None:
        webhook_secret = None  # it may stand in the environment for others
    elif webhook_secret is None:
        raise typer.BadParameter("--webhook-url needs --webhook-secret, or STRIPE_WEBHOOK_SECRET in the environment")
    serve(host, port, data=data, webhook_url=webhook_url, webhook_secret=webhook_secret, limits=limits)


@sandbox.command()
def provider(
    port: Port,
    log: Annotated[Path, typer.Option(help="File that every served call is appended to: the truth about usage.")],
    host: Host = "127.0.0.1",
    seed: Annotated[int, typer.Option(help="Decides all answers.")] = 1,
    fault_rate: Annotated[float, typer.Option(help="Share of attempts answered with 429 or 500, 0 to 1.")] = 0.05,
    pause_s: Annotated[float, typer.Option(help="Seconds between two words of a stream.", min=0)] = 0.01,
) -> None:
    """Serve a model provider that speaks the OpenAI and Anthropic wire formats and logs what it served.

    By default it refuses 5 % of the attempts, so that SDKs retry as they do with real providers; --fault-rate 0 ends
    that.
    """
    from meterhouse_sandbox.provider import serve

    try:
        serve(host, port, log, seed=seed, fault_rate=fault_rate, pause_s=pause_s)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None
