"""What goes wrong with a remote storage: which faults pass, how long to wait for that, and what to tell the user.

Every fault leaves this package as a `StorageError` with one line: the url, what happened, the remedy. A fault that passes (500, 503,
429, slow down, a timeout, a broken connection, a body cut short) is tried again with exponential backoff; the libraries below make one
attempt each, so that attempts don't multiply.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from open_lm.storage.urls import scheme

ATTEMPTS = 8
"""Attempts at one request. OPENLM_STORAGE_ATTEMPTS overrides it."""
FIRST_DELAY = 0.5
"""Seconds before the second attempt, doubled for each further one. OPENLM_STORAGE_DELAY overrides it."""
TIMEOUT = 15.0
"""Seconds without a byte after which a request counts as failed. OPENLM_STORAGE_TIMEOUT overrides it."""

_LONGEST_DELAY = 15.0
_PATIENCE = 60.0  # seconds from the first failing request on, after which no further attempt starts

_PASSING_CODES = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException"),
    *("RequestThrottled", "TooManyRequests", "BandwidthLimitExceeded", "OperationAborted"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),  # bytes lost on the way there
}
_PASSING_TYPES = {
    *("builtins.ConnectionError", "builtins.TimeoutError", "socket.gaierror", "fsspec.FSTimeoutError", "http.IncompleteRead"),
    *(
        "botocore.HTTPClientError",
        "botocore.ConnectionError",
        "botocore.ResponseParserError",
        "aiohttp.ClientError",
        "asyncio.IncompleteReadError",
    ),
    *(
        "requests.ConnectionError",
        "requests.Timeout",
        "requests.ChunkedEncodingError",
        "httpx.TransportError",
        "httpx2.TransportError",
        "urllib3.HTTPError",
    ),
}
_FINAL_TYPES = {"aiohttp.InvalidURL", "aiohttp.ClientConnectorCertificateError", "aiohttp.ClientSSLError", "botocore.SSLError"}
_UNREACHABLE_TYPES = {
    *("botocore.EndpointConnectionError", "botocore.ConnectTimeoutError", "aiohttp.ClientConnectorError", "aiohttp.ConnectionTimeoutError"),
    *(
        "socket.gaierror",
        "builtins.ConnectionRefusedError",
        "httpx.ConnectError",
        "httpx.ConnectTimeout",
        "httpx2.ConnectError",
        "httpx2.ConnectTimeout",
        "requests.ConnectionError",
    ),
}

log = logging.getLogger(__name__)
T = TypeVar("T")


class StorageError(OSError):
    """A remote file can't be read or written; final, in one line with the url and the remedy."""


class RemoteNotFoundError(StorageError, FileNotFoundError):
    """No such file, or no such bucket."""


class RemotePermissionError(StorageError, PermissionError):
    """No credentials, wrong ones, or no right to do this."""


class CutShortError(ConnectionError):
    """Fewer bytes came than were announced."""


class MismatchError(ConnectionError):
    """What lies on the other side is not what was sent, or what came is not what lies there."""


def attempts() -> int:
    """Attempts at one request, at least 1."""
    return max(1, int(os.environ.get("OPENLM_STORAGE_ATTEMPTS") or ATTEMPTS))


def timeout() -> float:
    """Seconds without a byte that a request may take."""
    return float(os.environ.get("OPENLM_STORAGE_TIMEOUT") or TIMEOUT)


def delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row (from 1): doubling, with jitter in its upper half."""
    first = float(os.environ.get("OPENLM_STORAGE_DELAY") or FIRST_DELAY)
    return min(first * 2 ** (failures - 1), _LONGEST_DELAY) * random.uniform(0.5, 1)


def retry(url: str, request: Callable[[], T], stop: threading.Event | None = None) -> T:
    """The result of a request, tried again while it meets faults that pass.

    Args:
        url: named in warnings and errors.
        stop: when set, no further attempt is made and waiting ends.

    Raises:
        StorageError: after the last attempt, or at once for a fault that doesn't pass.
        ValueError: a url that no attempt can make work.
    """
    failures, begin = 0, 0.0
    while True:
        started = time.monotonic()
        try:
            return request()
        except Exception as error:
            failures += 1
            begin = started if failures == 1 else begin
            spent = time.monotonic() - begin
            stopped = stop is not None and stop.is_set()
            if stopped or not is_passing(error) or failures >= attempts() or spent > _PATIENCE:
                raise explained(url, error, failures) from error
            seconds = delay(failures)
            if failures > 1:
                log.warning("%s: %s; attempt %d of %d in %.1f s", url, one_line(error), failures + 1, attempts(), seconds)
        if stop is None:
            time.sleep(seconds)
        else:
            stop.wait(seconds)


def is_passing(error: BaseException) -> bool:
    """True for a fault that may be gone at the next attempt."""
    if isinstance(error, StorageError):
        return False
    kinds, status, code = _kinds(error), status_of(error), code_of(error)
    if code in _PASSING_CODES or status in (408, 425, 429):
        return True
    if status is not None and status >= 400:
        return status >= 500 and status != 501
    return bool(kinds & _PASSING_TYPES) and not kinds & _FINAL_TYPES


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    words = " ".join(str(_root(error)).split())
    status = status_of(error)
    if not words or words == "None":
        words = type(error).__name__
    return f"{words} ({status})" if status is not None and str(status) not in words else words


def explained(url: str, error: BaseException, failures: int = 1) -> Exception:
    """An error with one line that names the url, the cause and the remedy. One that has been explained stays as it is."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, (ValueError, ImportError)) and not is_passing(error):
        return error if url in str(error) else ValueError(f"{url}: {one_line(error)}")
    kinds = _kinds(error)
    denied = _denied(url, error, kinds)
    if denied:
        return RemotePermissionError(f"{url}: {denied}")
    missing = _missing(error, kinds)
    if missing:
        return RemoteNotFoundError(f"{url}: {missing}")
    tried = f" after {failures} attempts" if failures > 1 else ""
    if kinds & _UNREACHABLE_TYPES:
        remedy = "the network and AWS_ENDPOINT_URL" if scheme(url).startswith("s3") else "the network and the address"
        return StorageError(f"{url}: can't be reached{tried}: {one_line(error)}; check {remedy}")
    if status_of(error) == 301 or code_of(error) in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        return StorageError(f"{url}: the bucket is in another region; set AWS_DEFAULT_REGION to its region ({one_line(error)})")
    return StorageError(f"{url}: {'gave up' + tried + '; the last fault: ' if tried else ''}{one_line(error)}")


def _denied(url: str, error: BaseException, kinds: set[str]) -> str | None:
    code, status = code_of(error), status_of(error)
    if kinds & {"botocore.NoCredentialsError", "botocore.PartialCredentialsError", "botocore.CredentialRetrievalError"}:
        public = "; for a public bucket set FSSPEC_S3_ANON=1"
        return f"no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or run 'aws configure'{public}"
    if "botocore.ProfileNotFound" in kinds:
        return f"{one_line(error)}; check AWS_PROFILE"
    if code in ("ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"):
        return "the AWS credentials have expired; get new ones (for example 'aws sso login')"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"):
        return f"the AWS credentials are refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong, so that requests are refused; set it"
    if status in (401, 403) or code in ("AccessDenied", "403") or isinstance(error, PermissionError):
        remedy = {"hf": "check the name and set HF_TOKEN", "gs": "run 'gcloud auth application-default login'"}.get(scheme(url))
        if scheme(url).startswith("s3"):
            remedy = "the credentials need s3:GetObject, s3:PutObject and s3:ListBucket (without it a missing file looks so too)"
        return f"access denied; {remedy or 'check the address and your rights'}"
    return None


def _missing(error: BaseException, kinds: set[str]) -> str | None:
    if code_of(error) == "NoSuchBucket":
        return "no such bucket; check the name, or create it"
    if isinstance(error, FileNotFoundError) or status_of(error) in (404, 410):
        return "no such file"
    return "is a folder, not a file" if "builtins.IsADirectoryError" in kinds else None


def _root(error: BaseException) -> BaseException:
    """The error of the client library, which s3fs keeps as the cause of its own."""
    cause = error.__cause__
    return cause if cause is not None and isinstance(getattr(cause, "response", None), dict) else error


def code_of(error: BaseException) -> str | None:
    """The error code of S3, such as SlowDown."""
    response = getattr(_root(error), "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error answer."""
    root = _root(error)
    response = getattr(root, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None) or getattr(root, "status", None) or getattr(root, "code", None)
    return status if isinstance(status, int) else None


def _kinds(error: BaseException) -> set[str]:
    """`package.Class` of an error's classes: names, because none of the packages may be imported for this."""
    return {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(_root(error)).__mro__}
