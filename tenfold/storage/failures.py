"""What went wrong, in a sentence with a cure, and whether trying again may help.

The same words for all who talk to storage: boto, MinIO's client, Lance and Daft (whose Rust errors arrive as text), and
the operating system. What is not known for a failure of storage is left alone.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from tenfold.errors import StorageError, TenfoldError
from tenfold.storage.settings import Settings
from tenfold.storage.uris import is_s3, split

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A kind of failure.

    Attributes:
        kind: one word, for code.
        says: what is wrong; goes behind the address. `{bucket}` is filled in.
        cure: what to do.
        transient: whether the same request may succeed in a while.
    """

    kind: str
    says: str
    cure: str
    transient: bool = False


_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key of this server"
_REACH = "check AWS_ENDPOINT_URL, and that the server runs and can be reached from here"
MISSING = Failure("missing", "is not there", "check the path, or run the step that writes it")
BUCKET = Failure("bucket", "there is no bucket {bucket!r}", "create the bucket, or correct its name")
KEY = Failure("key", "the access key is not known there", _KEYS)
SECRET = Failure("secret", "the secret key does not belong to the access key", _KEYS)
NO_KEYS = Failure("keys", "no access key was found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
TOKEN = Failure("token", "the session token is wrong or has expired", "renew AWS_SESSION_TOKEN and the keys with it")
DENIED = Failure("denied", "this key may not do that", "give the key's policy list, get, put and delete on the bucket")
CLOCK = Failure("clock", "the clocks of this machine and the server differ too much", "set the clock (NTP)")
REGION = Failure("region", "the bucket lies in another region", "set AWS_REGION to the region of the bucket")
NAME = Failure("name", "{bucket!r} is no valid bucket name", "use 3 to 63 lower-case letters, digits, dots and hyphens")
QUOTA = Failure("full", "the store is full, or its quota is used up", "free space there, or raise the quota")
CHANGED = Failure("changed", "it was changed by somebody else meanwhile", "make sure of one writer, and run again")
UPLOAD = Failure("upload", "the server has forgotten the upload that was under way", "run the step again")
DAMAGED = Failure("damaged", "the bytes were damaged on the way", "run again; if it stays so, check the network", True)
BUSY = Failure("busy", "the server is overloaded or not ready", "try again later, or give the server more", True)
REFUSED = Failure("refused", "nobody listens there", _REACH, True)
DNS = Failure("dns", "the name of the server is not known", _REACH, True)
TIMEOUT = Failure("timeout", "the server did not answer in time", _REACH, True)
BROKEN = Failure("broken", "the connection broke", _REACH, True)
UNREACHED = Failure("unreached", "no connection", _REACH, True)  # Lance does not say why; `_look_closer` finds out
TLS = Failure("tls", "no secure connection", "set AWS_CA_BUNDLE and SSL_CERT_FILE to the authority, or use http://")
FULL = Failure("full", "the disk is full, or the quota is used up", "free space, and run again")
PERMISSION = Failure("permission", "permission denied", "check owner and mode of the file and the folders above it")
READ_ONLY = Failure("readonly", "the file system is read-only", "choose another place")
FOLDER = Failure("folder", "is a folder", "give the path of a file")
NO_FOLDER = Failure("nofolder", "a part of the path is a file, not a folder", "choose another path")
TOO_LONG = Failure("name", "the name is too long", "choose a shorter path")
MANY = Failure("many", "too many open files", "raise the limit (`ulimit -n`), or use fewer workers")
DISK = Failure("disk", "the disk reports an error", "check the disk (dmesg), and use another")
EXISTS = Failure("exists", "is there already", "remove it, or choose another path")

_CODES = {
    failure: codes.split()
    for failure, codes in (
        (MISSING, "NoSuchKey NoSuchVersion 404 NotFound"),
        (BUCKET, "NoSuchBucket"),
        (KEY, "InvalidAccessKeyId"),
        (SECRET, "SignatureDoesNotMatch"),
        (TOKEN, "ExpiredToken ExpiredTokenException InvalidToken InvalidTokenId TokenRefreshRequired"),
        (DENIED, "AccessDenied AllAccessDisabled AccountProblem UnauthorizedAccess 401 403 Forbidden"),
        (CLOCK, "RequestTimeTooSkewed RequestInTheFuture RequestExpired"),
        (REGION, "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301 307"),
        (NAME, "InvalidBucketName"),
        (QUOTA, "XMinioStorageFull XMinioAdminBucketQuotaExceeded QuotaExceeded EntityTooLarge 507"),
        (CHANGED, "PreconditionFailed ConditionalRequestConflict 409 412"),
        (UPLOAD, "NoSuchUpload InvalidPart"),
        (DAMAGED, "BadDigest InvalidDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch IncompleteBody"),
        (
            BUSY,
            "SlowDown SlowDownRead SlowDownWrite RequestLimitExceeded Throttling ThrottlingException TooManyRequests"
            " ServiceUnavailable InternalError OperationAborted XMinioServerNotInitialized XMinioBackendDown"
            " InsufficientReadQuorum InsufficientWriteQuorum 429 500 502 503 504",
        ),
        (TIMEOUT, "RequestTimeout 408"),
    )
}
BY_CODE = {code: failure for failure, codes in _CODES.items() for code in codes}
BY_ERRNO = {
    errno.ENOENT: MISSING,
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: READ_ONLY,
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EISDIR: FOLDER,
    errno.ENOTDIR: NO_FOLDER,
    errno.EEXIST: EXISTS,
    errno.ENAMETOOLONG: TOO_LONG,
    errno.EMFILE: MANY,
    errno.ENFILE: MANY,
    errno.EIO: DISK,
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: BROKEN,
    errno.EPIPE: BROKEN,
    errno.ENETUNREACH: REFUSED,
    errno.EHOSTUNREACH: REFUSED,
    errno.ETIMEDOUT: TIMEOUT,
}
# For errors that are only text. The first that fits counts, so the narrow ones come first.
BY_TEXT = [
    (re.compile(pattern, re.IGNORECASE), failure)
    for pattern, failure in (
        (r"certificate|SSLError|SSL validation|tls handshake|invalid peer", TLS),
        (r"not known|dns error|failed to resolve|lookup address|name resolution|getaddrinfo|nodename", DNS),
        (r"connection refused|os error 111|unreachable", REFUSED),
        (r"unable to locate credentials|partial credentials|credentials?.{0,40}not (loaded|found|provided)", NO_KEYS),
        (
            r"no providers? in chain|no credential|failed to (load|get) credentials|error retrieving credentials",
            NO_KEYS,
        ),
        (r"no space left|os error 28\b|disk quota", FULL),
        (r"permission denied|os error 13\b", PERMISSION),
        (r"read-only file system|os error 30\b", READ_ONLY),
        (r"too many open files|os error 24\b", MANY),
        (r"checksum", DAMAGED),
        (r"timed? out|(?<!retry_)timeout|deadline has elapsed", TIMEOUT),
        (r"connection.{0,30}(closed|reset|aborted|broken|error)|broken pipe|incomplete ?(read|message)", BROKEN),
        (r"remote end closed|end of file before", BROKEN),
        (r"could not connect|error sending request|dispatch failure", UNREACHED),
        (r"error (reading|decoding) (a body|response)|connectionerror|channel closed", BROKEN),
        (r"commit conflict|concurrent (commit|modification|transaction)|retryable commit", CHANGED),
        (r"already exists", EXISTS),
        (r"\bnot found|no such file|os error 2\b|does not exist", MISSING),
    )
]
# A name tells more than a number: an answer 404 may mean the object or the bucket.
_CODE_IN_TEXT = (
    re.compile(r"<Code>(\w+)</Code>"),
    re.compile(r"\bcode: (?:Some\()?\"(\w+)\""),
    re.compile(r"\bstatus(?: code)?:? (\d{3})\b"),
)
_FOREIGN = ("botocore.", "boto3.", "s3transfer.", "minio.", "urllib3.", "aiohttp.", "lance.", "daft.", "pyarrow.")


def classify(error: BaseException) -> Failure | None:
    """The kind of failure that `error` is; None where it is none of storage's."""
    if isinstance(error, TenfoldError):
        return None
    text = _text(error)
    foreign = f"{type(error).__module__}.".startswith(_FOREIGN)
    rust = (
        "LanceError" in text
        or "rust/lance" in text
        or "S3 error" in text
        or "object_store" in text
        or "DaftError" in text
    )
    if code := _code(error, text) if foreign or rust else "":
        if found := BY_CODE.get(code):
            return found
        if not code.isdigit():
            return Failure("refused-by-server", f"the server refused: {code}", "see the server's log for this request")
    if isinstance(error, OSError) and error.errno in BY_ERRNO:
        return BY_ERRNO[error.errno]
    if isinstance(error, OSError) or foreign or rust:
        for pattern, failure in BY_TEXT:
            if pattern.search(text):
                return failure
        for kind, failure in ((FileNotFoundError, MISSING), (PermissionError, PERMISSION), (TimeoutError, TIMEOUT)):
            if isinstance(error, kind):
                return failure
        if isinstance(error, ConnectionError):
            return BROKEN
    if isinstance(error, OSError) and not rust:
        return Failure("other", f"{redact(text)[:300]}", "")
    return None


def storage_error(uri: str, failure: Failure) -> StorageError:
    """The error for people: names address and service, never a secret."""
    where = uri
    if is_s3(uri):
        service = Settings.read().endpoint or "Amazon S3"
        where = f"{uri} ({redact(service)})"
        if failure is UNREACHED:
            failure = _look_closer(service)
    join = " " if failure in (MISSING, FOLDER, EXISTS) else ": "
    return StorageError(f"{where}{join}{failure.says.format(bucket=split(uri)[0])}", failure.cure)


@contextmanager
def translate(uri: str) -> Iterator[None]:
    """Turn what boto, MinIO, Lance, Daft or the system raise inside into StorageError; other errors pass through.

    >>> with translate("s3://tenfold/corpus"):
    ...     lance.write_dataset(...)
    """
    try:
        yield
    except Exception as error:
        failure = classify(error)
        if failure is None:
            raise
        raise storage_error(uri, failure) from error


def retry(uri: str, action: Callable[[], T], patience: float | None = None) -> T:
    """Do `action`, again and again while it fails in a way that may pass, for `patience` seconds.

    Waits are random between nothing and a bound that doubles from 0.1 s to 5 s, so that many ranks do not come back at
    the same moment. Raises StorageError; FileNotFoundError where there is no such object.
    """
    patience = Settings.read().patience if patience is None else patience
    start = time.monotonic()
    for attempt in itertools.count():
        try:
            result = action()
        except Exception as error:
            failure = classify(error)
            if failure is None:
                raise
            if failure is MISSING:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error
            wait = random.uniform(0, min(5.0, 0.1 * 2**attempt))
            if not failure.transient or time.monotonic() - start + wait > patience:
                raise storage_error(uri, failure) from error
            if attempt == 3:  # a blip is not worth a line
                logger.warning("%s; trying again for up to %.0f s", storage_error(uri, failure).message, patience)
            time.sleep(wait)
        else:
            if attempt > 3:
                logger.warning("%s answers again after %.0f s", uri, time.monotonic() - start)
            return result
    raise AssertionError


def _look_closer(service: str) -> Failure:
    """Why there was no connection to `service`: one more try, a second long."""
    address = urlsplit(service)
    if not address.hostname:
        return UNREACHED
    try:
        socket.create_connection(
            (address.hostname, address.port or (443 if address.scheme == "https" else 80)), 1
        ).close()
    except socket.gaierror:
        return DNS
    except TimeoutError:
        return TIMEOUT
    except OSError as error:
        return BY_ERRNO.get(error.errno or 0, UNREACHED)
    return BROKEN


def redact(text: str) -> str:
    """`text` without the secrets of the environment and without user:password in addresses."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)


def _code(error: BaseException, text: str) -> str:
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    if isinstance(code := getattr(error, "code", None), str):  # minio's S3Error
        return code
    return next((found[1] for pattern in _CODE_IN_TEXT if (found := pattern.search(text))), "")


def _text(error: BaseException) -> str:
    """What the error and its causes say."""
    parts, seen = [], set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts.append(f"{type(current).__name__}: {current}")
        inner = getattr(current, "kwargs", None)  # botocore keeps the cause there
        inner = inner.get("error") if isinstance(inner, dict) else None
        current = inner if isinstance(inner, BaseException) else current.__cause__ or current.__context__
    return " | ".join(parts)
