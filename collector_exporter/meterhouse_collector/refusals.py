"""Why a door turns a request away, with the words for it: one table for HTTP and gRPC."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of refusal in both protocols; `retry` tells the sender that the same bytes may be sent again."""

    code: str
    http_status: int
    grpc_status: int
    title: str
    retry: bool = False


# The numbers of gRPC statuses are those of google.rpc.Code.
UNAUTHENTICATED: Final = Kind("unauthenticated", 401, 16, "The key is missing or not valid")
FORBIDDEN: Final = Kind("customer_forbidden", 403, 7, "The key may not act for this customer")
MALFORMED: Final = Kind("malformed", 400, 3, "The request cannot be read")
TOO_LARGE: Final = Kind("too_large", 413, 3, "The request is too large")
UNSUPPORTED: Final = Kind("unsupported_media_type", 415, 3, "The request's encoding is not supported")
NOT_FOUND: Final = Kind("not_found", 404, 12, "There is nothing here")
METHOD: Final = Kind("method_not_allowed", 405, 12, "The method does not fit the address")
TIMEOUT: Final = Kind("timeout", 408, 14, "The request took too long", retry=True)
SERIES: Final = Kind("too_many_series", 429, 8, "The key reports more series than it may", retry=True)
OVERLOADED: Final = Kind("overloaded", 503, 14, "The collector cannot take the request now", retry=True)


class Refused(Exception):
    """A request that was not accepted; `detail` says what is wrong and what to do."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail
