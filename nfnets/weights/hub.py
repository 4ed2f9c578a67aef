"""Weights by reference: files, names of published weights, repositories and URLs.

    f0.safetensors, FOLDER          a file, or a folder with a model.safetensors
    nfnet_f0, nfnet_f0.dm_in1k      a name of `PRETRAINED`, with or without its tag
    hf://OWNER/REPOSITORY[/FILE]    a repository of the Hugging Face Hub
    https://HOST/F0_haiku.npz       any other published file

`@REVISION` (a branch, tag or commit) may follow names and repositories. Files are
downloaded once, into the cache of huggingface_hub or, from URLs, into ~/.cache/nfnets.
"""

import contextlib
import difflib
import hashlib
import http.client
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple
import urllib.error
import urllib.parse
import urllib.request

from nfnets.errors import UserError
from nfnets.files import local_path, write_atomically
from nfnets.models.variants import list_models

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_CHUNK = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Pretrained(NamedTuple):
    """Published weights.

    Attributes:
      model: name for `nfnets.create_model`.
      architecture: timm's name of the model.
      tag: data and recipe of the training.
      params: number of parameters, millions.
      top1: ImageNet accuracy of this file, %, as measured by timm at the test size.
    """

    model: str
    architecture: str
    tag: str
    params: float
    top1: float

    @property
    def repository(self) -> str:
        """On the Hugging Face Hub."""
        return f"timm/{self.architecture}.{self.tag}"

    @property
    def source(self) -> str:
        """Who trained the weights."""
        return "DeepMind" if self.tag.startswith("dm_") else "timm"


PRETRAINED = (
    Pretrained("nfnet_f0", "dm_nfnet_f0", "dm_in1k", 71.5, 83.49),
    Pretrained("nfnet_f1", "dm_nfnet_f1", "dm_in1k", 132.6, 84.70),
    Pretrained("nfnet_f2", "dm_nfnet_f2", "dm_in1k", 193.8, 85.19),
    Pretrained("nfnet_f3", "dm_nfnet_f3", "dm_in1k", 254.9, 85.69),
    Pretrained("nfnet_f4", "dm_nfnet_f4", "dm_in1k", 316.1, 85.84),
    Pretrained("nfnet_f5", "dm_nfnet_f5", "dm_in1k", 377.2, 86.10),
    Pretrained("nfnet_f6", "dm_nfnet_f6", "dm_in1k", 438.4, 86.36),
    Pretrained("nfnet_l0", "nfnet_l0", "ra2_in1k", 35.1, 82.75),
    Pretrained("eca_nfnet_l0", "eca_nfnet_l0", "ra2_in1k", 24.1, 82.58),
    Pretrained("eca_nfnet_l1", "eca_nfnet_l1", "ra2_in1k", 41.4, 84.01),
    Pretrained("eca_nfnet_l2", "eca_nfnet_l2", "ra3_in1k", 56.7, 84.70),
    Pretrained("timm_nf_regnet_b1", "nf_regnet_b1", "ra2_in1k", 10.2, 79.31),
    Pretrained("timm_nf_resnet50", "nf_resnet50", "ra2_in1k", 25.6, 80.64),
    Pretrained("test_nfnet", "test_nfnet", "r160_in1k", 0.4, 47.62),
)


def find_weights(reference: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the local file that a reference stands for, downloading it if necessary.

    The `config.json` of a repository in timm's format lies beside the file.

    Args:
      reference: see the module.

    Raises:
      UserError: there is no such file, name, repository, revision or URL, it cannot be
        reached and is not cached, or it does not arrive whole.
    """
    text = os.fspath(reference)
    if text.startswith("hf://"):
        return _find_in_repository(text)
    if text.startswith(("https://", "http://")):
        return _find_url(text)
    path = local_path(reference)
    if path.is_file():
        return path
    if path.is_dir() and (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    name, at, revision = text.partition("@")
    return _find_in_repository(f"hf://{_find_known(name).repository}{at}{revision}")


def model_of_architecture(name: str) -> str | None:
    """Returns our name of a model of `PRETRAINED` by timm's; None if it is not there."""
    return {known.architecture: known.model for known in PRETRAINED}.get(name)


def _find_known(reference: str) -> Pretrained:
    """Returns the first weights of that name; raises `UserError` if there are none."""
    name, _, tag = reference.partition(".")
    found = [known for known in PRETRAINED if known.model == name]
    for known in found:
        if tag in ("", known.tag):
            return known
    if found:
        tags = " or ".join(known.tag for known in found)
        reason = f"the published weights of {name} are {tags}, not {tag!r}"
    elif name in list_models():
        reason = f"{name} is a model without published weights"
    else:
        close = difflib.get_close_matches(reference, [known.model for known in PRETRAINED])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        reason = f"it is not the name of published weights either{hint}"
    raise UserError(
        f"no weights file {reference}: {reason} (`nfnets models --pretrained` lists them)"
    )


def _find_in_repository(reference: str) -> pathlib.Path:
    """Returns a file of `hf://OWNER/REPOSITORY[/FILE][@REVISION]`."""
    from nfnets.weights.files import identify_format

    place, at, revision = reference.removeprefix("hf://").partition("@")
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name or (at and not revision):
        raise UserError(f"{reference} is not hf://OWNER/REPOSITORY[/FILE][@REVISION]")
    file = file.rstrip("/") or WEIGHTS_FILE
    path = _download(f"{owner}/{name}", file, revision or "main")
    if identify_format(path) == "timm":
        # Of the same commit, which also saves a request if it is cached.
        config = str(pathlib.PurePosixPath(file).with_name(CONFIG_FILE))
        _download(f"{owner}/{name}", config, _commit(path, file))
    return path


def _download(repository: str, file: str, revision: str) -> pathlib.Path:
    """Returns a file of a repository in the cache of huggingface_hub."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise UserError(
            f"hf://{repository} needs huggingface_hub; pip install huggingface_hub"
        ) from error
    what = f"hf://{repository}"
    try:
        cached = hub.try_to_load_from_cache(repository, file, revision=revision)
        path = pathlib.Path(hub.hf_hub_download(repository, file, revision=revision))
        if str(path) != cached:
            url = hub.hf_hub_url(repository, file, revision=_commit(path, file))
            _check_sha256(path, hub.get_hf_file_metadata(url).etag, what)
        return path
    except errors.GatedRepoError:
        reason = f"accept its terms at {constants.ENDPOINT}/{repository}"
        reason += " and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private (`hf auth login`)"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        reason = f"{file} is not cached, and " + (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} cannot be reached; check the network"
        )
    except errors.EntryNotFoundError:
        reason = f"it has no file {file}"
    except errors.HFValidationError:
        reason = "this is not a valid name of a repository"
    except UserError:
        raise
    except Exception as error:  # of the HTTP library, which depends on the version
        first = (str(error).splitlines() or [""])[0]
        reason = f"{file} was not downloaded: {type(error).__name__}: {first}; try again"
        raise UserError(f"{what}: {reason}") from error
    raise UserError(f"{what}: {reason}") from None


def _commit(path: pathlib.Path, file: str) -> str:
    """Returns the commit of a cached file: its path is `.../snapshots/COMMIT/FILE`."""
    return path.parents[file.count("/")].name


def _check_sha256(path: pathlib.Path, etag: str | None, what: str) -> None:
    """Compares a downloaded file with its ETag, which of large files is the SHA-256."""
    if etag is None or not _SHA256.fullmatch(etag):
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise UserError(
            f"{what}: {path.name} arrived damaged: its SHA-256 is {found[:12]}..., not "
            f"{etag[:12]}...; it was removed; try again"
        )


def _find_url(url: str) -> pathlib.Path:
    """Returns the file of a URL in the cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    folder = pathlib.Path(cache).expanduser() / "nfnets" / digest
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name or "weights"
    path = folder / name
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{url} is not cached, and HF_HUB_OFFLINE is set")
    try:
        with contextlib.closing(urllib.request.urlopen(url, timeout=30)) as response:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda place: _receive(response, place, url))
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise UserError(
            f"{url} is not cached, and cannot be reached: {error.reason}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} was not downloaded: {error}; try again") from None
    return path


def _receive(response: Any, place: pathlib.Path, url: str) -> None:
    """Writes a response to a file, shows the progress and checks the size."""
    total = int(response.headers.get("Content-Length") or 0)
    size = f"{total / 1e6:.1f} MB" if total else "unknown size"
    print(f"downloading {url}, {size}", file=sys.stderr)
    received = 0
    with place.open("wb") as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            received += len(chunk)
            if total and sys.stderr.isatty():
                end = "\n" if received == total else "\r"
                print(f"{received / total:5.0%}", end=end, file=sys.stderr, flush=True)
    if total and received != total:
        raise UserError(
            f"{url}: the transfer broke after {received:,} of {total:,} bytes; try again"
        )
