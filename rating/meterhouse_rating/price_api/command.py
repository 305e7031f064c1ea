"""`meterhouse prices serve`: the price API, until stopped."""

from typing import Annotated

import typer

from meterhouse_rating.command_line import Data, existing, refusals
from meterhouse_store import logs


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8082,
    data: Data = None,
) -> None:
    """Serve price books and customers' price lists over HTTP, read-only, until stopped.

    Callers need a key of the role pricing (`meterhouse keys create NAME --role pricing`); of what namespace it is, that
    namespace's prices it reads. What there is: http://HOST:PORT/v1/openapi.json
    """
    import uvicorn

    from meterhouse_rating.price_api.app import build
    from meterhouse_store.sql import open_engine

    with refusals():
        settings = existing(data)
    logs.configure()
    print(f"prices: http://{host}:{port}/v1/openapi.json", flush=True)
    uvicorn.run(
        build(lambda: open_engine(settings)),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=200,
    )
