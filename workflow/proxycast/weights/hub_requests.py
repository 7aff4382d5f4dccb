"""Requests to the hub: its address, retries, and messages of errors that contain no secret."""

import errno
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.request import getproxies

from proxycast.config.study import HubOptions
from proxycast.options import LONGEST_CAUSE, InputError, is_inner_name
from proxycast.weights.hub_snapshots import HubSource, RemoteFile, Snapshot, cache_folder, cached_snapshot, shortened
from proxycast.weights.model_files import COMMIT, HASH

if TYPE_CHECKING:
    from httpx2 import Response

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

for library in ("httpx", "httpx2"):  # at INFO they log every request, with the signed addresses of private files
    logging.getLogger(library).setLevel(logging.WARNING)
for module in ("file_download", "utils._http"):  # their warnings hold whole addresses: signed ones, and passwords
    logging.getLogger(f"huggingface_hub.{module}").setLevel(logging.ERROR)

HTTP_SECONDS = 60  # without an answer, until the next try
LONGEST_BACKOFF = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds between two tries that a server may ask for; the hub counts requests of five minutes
WORKSPACE = ".download"  # in the folder of a checkpoint or data set, while its files come
LARGEST_FILE = 10**14  # bytes; the hub takes files up to 500 GB
# Other addresses are ambiguous: a password could be taken for a host or a path, and be shown.
HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
ENDPOINT = re.compile(rf"((?i:https?)://)(?:[^\s/?#@\\]*@)?({HOST}(?:/[A-Za-z0-9._~/+-]*)?)")


def resolve(source: HubSource, options: HubOptions) -> Snapshot:
    """The commit that `source` is now, and all its files; offline, those in the hub cache.

    Raises InputError, naming repository and revision, if there is no such source or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        return _require_sound(cached_snapshot(source), f"the hub cache {cache_folder()}")
    shown_endpoint()  # before a library can print it
    bound_waits()
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        # The HTTP library would print the whole header.
        raise InputError("HF_TOKEN: the token holds a character that no token has; copy it again")
    api = HfApi(endpoint=hub_endpoint())

    def ask() -> Snapshot:
        what = dict(revision=source.revision, repo_type=source.repo_type, files_metadata=True)
        info = api.repo_info(source.repo, timeout=HTTP_SECONDS, **what)
        files = [
            RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or ()
        ]
        return Snapshot(source, info.sha, tuple(files))

    snapshot = with_retries(ask, source, options.retries)
    unknown = [file.name for file in snapshot.files if file.size is None or file.digest is None]
    if unknown:
        raise InputError(
            f"{source}: {shown_endpoint()} gives no size or hash for {unknown[:5]}, so that they cannot be checked; "
            "set HF_ENDPOINT to a mirror that does"
        )
    return _require_sound(snapshot, shown_endpoint())


def _require_sound(snapshot: Snapshot, origin: str) -> Snapshot:
    """Return `snapshot` if its names are safe to join to a folder and differ from each other. Else raise InputError.

    `origin`: who says what is in it. No path has been made of it before.
    """
    said = f"{snapshot.source}: {origin} says"
    if not isinstance(snapshot.commit, str) or not COMMIT.fullmatch(snapshot.commit):
        raise InputError(f"{said} that its commit is {shortened(snapshot.commit)}; a commit is 40 hexadecimal digits")
    names = Counter(file.name for file in snapshot.files if isinstance(file.name, str))
    for file in snapshot.files:
        name, size, digest = shortened(file.name), shortened(file.size), shortened(file.digest)
        if not is_inner_name(file.name) or file.name.split("/")[0] == WORKSPACE:
            raise InputError(
                f"{said} that it has a file {name}; a name is relative to the repository, without empty "
                f"parts, '.', '..', backslashes and control characters, and does not begin with {WORKSPACE!r}"
            )
        if names[file.name] > 1:
            raise InputError(f"{said} {names[file.name]} times that it has a file {name}; once is right")
        if folder := next((str(parent) for parent in PurePosixPath(file.name).parents if str(parent) in names), None):
            raise InputError(f"{said} that {shortened(folder)} is a file and, with {name}, a folder of files")
        if type(file.size) is not int or not 0 <= file.size <= LARGEST_FILE:
            raise InputError(f"{said} that {name} has {size} bytes; no file has")
        if not isinstance(file.digest, str) or not HASH.fullmatch(file.digest):
            raise InputError(f"{said} that {name} has the hash {digest}; it has 40 or 64 hexadecimal digits")
    return snapshot


class WrongBytes(OSError):
    """A file came through whole, but it is not the one that the hub promised."""


def with_retries(action: Callable[[], Answer], source: HubSource, retries: int, name: str | None = None) -> Answer:
    """Return what `action` returns. Temporary errors are tried again; in the end they become InputError.

    `name`: the file in question. A full disk and other faults of this machine are raised as they are.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    about = f"{source}, file {name}" if name else f"{source}"
    for attempt in range(retries + 1):
        try:
            return action()
        except Exception as error:  # a server may send anything, and libraries raise errors of their own
            # hf_hub_download raises "not in the cache" for any error.
            fault = (error.__cause__ or error) if isinstance(error, LocalEntryNotFoundError) else error
            is_of_machine = isinstance(fault, OSError) and fault.errno is not None
            if isinstance(error, InputError) or is_of_machine or is_disk_full(fault):
                raise
            if attempt == retries or not _may_pass(fault):
                raise InputError(f"{about}: {_explained(fault, source)}") from None
            seconds = _seconds_to_wait(fault, attempt)
            log.warning("%s: %s; trying again in %.0f s", about, _cause_of(fault), seconds)
        time.sleep(seconds)


def is_disk_full(error: Exception) -> bool:
    # hf_xet and safetensors have the number only in their message.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)


def _may_pass(fault: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the second: of the HTTP library itself

    if isinstance(fault, HfHubHTTPError):
        # A plain 403 comes from the storage behind the hub when the signed address of a file has expired.
        status = fault.response.status_code
        return status in (408, 429) or status >= 500 or (status == 403 and type(fault) is HfHubHTTPError)
    return isinstance(fault, HTTPError | OSError | RuntimeError) and not isinstance(fault, ValueError | RecursionError)


def _seconds_to_wait(fault: Exception, attempt: int) -> float:
    """Exponential backoff with jitter, or longer if the server asks for it, up to `LONGEST_ASKED`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    seconds = min(LONGEST_BACKOFF, 2.0**attempt) * random.uniform(0.5, 1.5)
    headers = fault.response.headers if hasattr(fault, "response") else {}
    asked = headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(headers)  # `bound_waits` has made its numbers short
    if re.fullmatch("[0-9]+", asked):
        seconds = max(seconds, int(asked))
    if limit is not None and limit.remaining == 0:
        seconds = max(seconds, limit.reset_in_seconds)
    return min(seconds, LONGEST_ASKED)


@cache
def bound_waits() -> None:
    """Limit how long huggingface_hub, which tries again by itself, waits if a server asks for it."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client():
        made = default_client_factory()
        made.event_hooks["response"].append(_shorten_waits)
        return made

    set_client_factory(client)


def _shorten_waits(response: "Response") -> None:
    for name in ("Retry-After", "RateLimit"):
        if name in response.headers:
            response.headers[name] = re.sub("[0-9]{4,}", f"{LONGEST_ASKED:.0f}", response.headers[name])


def _explained(fault: Exception, source: HubSource) -> str:
    """What went wrong and what would help, in words that cannot hold the token."""
    from huggingface_hub import errors

    endpoint = shown_endpoint()
    if isinstance(fault, errors.GatedRepoError):
        return (
            "the repository is gated; accept the conditions on the page of the repository with the account of "
            "HF_TOKEN, and set HF_TOKEN in the environment"
        )
    if isinstance(fault, errors.RepositoryNotFoundError):
        return (
            f"{endpoint} shows no such repository; correct its id, or if it is gated or private set HF_TOKEN in the "
            "environment to the token of an account that may read it"
        )
    if isinstance(fault, errors.RevisionNotFoundError):
        return f"no such branch, tag or commit{_close_revisions(source)}"
    if isinstance(fault, errors.HfHubHTTPError) and fault.response.status_code == 401:
        return f"{endpoint} refuses the token; set HF_TOKEN in the environment to one that is valid"
    if isinstance(fault, errors.HfHubHTTPError | WrongBytes):
        return f"{_cause_of(fault)}, from {endpoint}"
    if isinstance(fault, errors.HFValidationError):
        return "not an id that a repository can have; it is 'name' or 'organisation/name'"
    return (
        f"no use of {endpoint} ({_cause_of(fault)}); check the network, set HF_ENDPOINT to a mirror, or "
        f"HF_HUB_OFFLINE=1 to take what the hub cache {cache_folder()} holds"
    )


def _cause_of(fault: Exception) -> str:
    """One line for a log, never with the text of a server, which may repeat what it was sent.

    The text of a library is left out if the address of the mirror or of a proxy holds a password.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(fault, HfHubHTTPError):
        return f"HTTP status {fault.response.status_code}"
    if isinstance(fault, WrongBytes):
        return str(fault)
    if any("@" in address for address in (hub_endpoint(), *getproxies().values())):
        return type(fault).__name__
    text = str(fault).partition("\n")[0].replace(get_token() or "\n", "<token>")
    return f"{type(fault).__name__}: {text[:LONGEST_CAUSE]}"


def _close_revisions(source: HubSource) -> str:
    from huggingface_hub import HfApi

    try:
        refs = HfApi(endpoint=hub_endpoint()).list_repo_refs(source.repo, repo_type=source.repo_type)
    except Exception:  # only a hint
        return ""
    names = [ref.name[:80] for ref in (*refs.branches, *refs.tags)[:1000] if isinstance(ref.name, str)]
    close = get_close_matches(source.revision, names, n=5)
    return f"; close to it are {close}" if close else f"; there are {len(names)}, such as {names[:5]}"


def hub_endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def shown_endpoint() -> str:
    """The address without a mirror's password. `InputError`, which does not show it, if it is no address."""
    match = ENDPOINT.fullmatch(hub_endpoint())
    if not match:
        raise InputError(
            "HF_ENDPOINT: no address of a mirror; it is https://host, with :port, /path and, before the host, "
            "user:password@ where the mirror has them; in a password write what is no letter or digit as %XX"
        )
    return match[1] + match[2]
