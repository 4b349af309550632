"""Which process does which run, where several processes share a grid's folder, on one machine or on several.

    .claims/NAME@3             the third claim on a run, or on the table: host, process and token of the one who holds it
    .claims/process-TOKEN      a counter that this process raises while it lives

A claim is a file that can be made only once (a hard link, or `O_EXCL`), so one of several processes gets it. A lost process's claim 3 is
taken over by making claim 4; nobody removes a claim in order to take it. Who holds 3 and still lives sees 4 at its next beat, and stops.

A process of the same machine is lost when the system says that it and its worker have ended. Of another machine only the counter is seen:
its process is lost when the counter stands still for `STALE_SECONDS` of the observer's own steady clock. No two clocks are compared, so
they may differ and be set back.

Assumed of a shared file system: a file is made once whoever asks, and what one machine wrote another sees within half of `STALE_SECONDS`
when it opens the file. Locks aren't used.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankwise.errors import RankwiseError, machine_fault
from rankwise.files import parse_json

BEAT_SECONDS = 5.0
"""Time between two signs of life."""
STALE_SECONDS = 120.0
"""A process of another machine without a sign of life for so long is lost."""
POLL_SECONDS = 1.0
"""Time between two looks at what others hold."""
FOLDER = ".claims"
LIFE = "process-"
"""What the name of a process's counter begins with."""
TABLE = "table"
"""Name of the claim on what is written once for all runs: grid.json and the report."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim, and the seconds since its last sign of life."""

    host: str
    pid: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}, heard from {self.seconds:.0f} s ago"


@dataclass(frozen=True)
class _Claim:
    file: Path
    number: int
    content: bytes

    @property
    def name(self) -> str:
        """The run's, or the table's."""
        return self.file.name.rpartition("@")[0]

    @property
    def identity(self) -> dict[str, Any]:
        """Who made it; empty where that wasn't written to the end."""
        return next(iter(self._lines()), {})

    @property
    def worker(self) -> dict[str, Any]:
        """The process that trains; empty before it is started."""
        return next(iter(self._lines()[1:]), {})

    def _lines(self) -> list[dict[str, Any]]:
        return [_entry(line) for line in self.content.split(b"\n")[:-1]]


class Claims:
    """The claims of this process in one folder. Use it in a `with` block, which ends all of them."""

    def __init__(self, out: Path, on_lost: Callable[[str], None] | None = None) -> None:
        """Claim nothing yet.

        Args:
            out: the grid's folder.
            on_lost: called, in a thread, with the name of a claim that another process took over.
        """
        self._folder, self._on_lost = out / FOLDER, on_lost
        self.token = secrets.token_hex(8)
        self._identity = {
            "process": self.token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._life = self._folder / f"{LIFE}{self.token}"
        self._machines: dict[str, str | None] = {}
        self._held: dict[str, _Claim] = {}
        self._seen: dict[Path, tuple[bytes | None, float, bool]] = {}
        self._beats, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._beat()
        except OSError as error:
            raise RankwiseError(
                machine_fault(error) or f"{self._folder} can't be written: {error}."
            ) from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            for claim in self._all():  # also one that an interruption left unrecorded
                if claim.identity.get("process") == self.token:
                    claim.file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._life.unlink(missing_ok=True)
            for life in self._folder.glob(f"{LIFE}*"):
                if self._has_ended(_identity_in(life)):
                    life.unlink(missing_ok=True)
            self._folder.rmdir()  # the last one; others begin a new one if they need it

    # ── Claims ────────────────────────────────────────────────────────────────────────────────

    def claim(self, name: str) -> bool:
        """Claim a run, or take over the claim of a lost process. Return whether this process has it now.

        Raises:
            OSError: nothing can be written there.
        """
        before = self._of(name)
        if any(not self._lost(claim) for claim in before):
            return False
        number = 1 + max((claim.number for claim in before), default=0)
        mine = _Claim(self._folder / f"{name}@{number}", number, _line(self._identity))
        if not self._make(mine):
            return False
        known = {(claim.file, claim.content) for claim in before} | {(mine.file, mine.content)}
        if any((claim.file, claim.content) not in known for claim in self._of(name)):
            mine.file.unlink(missing_ok=True)  # another one claimed it at the same time: both try again
            return False
        self._held[name] = mine
        for claim in before:
            claim.file.unlink(missing_ok=True)
        return True

    def release(self, name: str) -> None:
        """End a claim."""
        if (mine := self._held.pop(name, None)) is not None and not self._is_others(mine):
            with contextlib.suppress(OSError):
                mine.file.unlink(missing_ok=True)

    def record_worker(self, name: str, pid: int) -> bool:
        """Record the process that trains, so that nobody begins the run again before it has ended.

        Returns:
            Whether the run is still this process's.
        """
        mine = self._held.get(name)
        if mine is None or self._is_others(mine):
            return False
        with contextlib.suppress(OSError), mine.file.open("r+b") as file:  # without it on a full disk
            file.seek(0, os.SEEK_END)
            file.write(_line({"pid": pid, "started": _started(pid)}))
        return True

    def claimed(self) -> set[str]:
        """Return the names on which there are claims, whoever made them."""
        return {name.rpartition("@")[0] for name in _listing(self._folder) if "@" in name}

    def sees(self, token: str) -> bool:
        """Return whether the process with this token works in the same folder."""
        return f"{LIFE}{token}" in _listing(self._folder)

    def holders(self) -> dict[str, Holder]:
        """Return who holds the claims of other processes that aren't lost, by name. It looks at the folder once."""
        found: dict[str, Holder] = {}
        for claim in self._all():
            identity = claim.identity
            if identity.get("process") != self.token and not self._lost(claim):
                found[claim.name] = Holder(
                    host=str(identity.get("host", "unknown host")),
                    pid=identity.get("pid", 0),
                    seconds=self._silence(claim),
                )
        return found

    @contextlib.contextmanager
    def alone(self, name: str = TABLE) -> Iterator[None]:
        """Have a `with` block to this process, once others have ended theirs.

        Raises:
            RankwiseError: nothing can be written there.
        """
        try:
            while not self.claim(name):
                time.sleep(POLL_SECONDS / 10 + secrets.randbelow(100) / 1000)
        except OSError as error:
            raise RankwiseError(
                machine_fault(error) or f"{self._folder} can't be written: {error}."
            ) from None
        try:
            yield
        finally:
            self.release(name)

    def neighbours(self) -> bool:
        """Return whether another living process of this machine holds a claim on a run here."""
        there = [name for name in _listing(self._folder) if name.startswith(LIFE)]
        for name in there:
            if name not in self._machines:  # read once: there may be many processes
                self._machines[name] = _identity_in(self._folder / name).get("machine")
        here = self._identity["machine"]
        if not any(self._machines[name] == here for name in there if name != self._life.name):
            return False
        return any(
            claim.identity.get("machine") == self._identity["machine"]
            and claim.identity.get("process") != self.token
            and claim.name != TABLE
            and not self._lost(claim)
            for claim in self._all()
        )

    # ── Files ─────────────────────────────────────────────────────────────────────────────────

    def _of(self, name: str) -> list[_Claim]:
        """Return every claim on a run, those of lost processes too."""
        return self._all(name)

    def _all(self, name: str | None = None) -> list[_Claim]:
        found = []
        for file, number in self._numbered(name):
            content = _content(file)
            if content is not None:
                found.append(_Claim(file, number, content))
        return found

    def _numbered(self, name: str | None) -> list[tuple[Path, int]]:
        """Return the files of the claims on a run, or on all, with their numbers."""
        parts = [(file, *file.rpartition("@")[::2]) for file in _listing(self._folder)]
        return [
            (self._folder / file, int(number))
            for file, run, number in parts
            if run and number.isdecimal() and name in (None, run)
        ]

    def _make(self, claim: _Claim) -> bool:
        """Make a claim's file with its content in one step. Return whether nobody else had made it."""
        partial = self._folder / f"new-{self.token}"
        self._folder.mkdir(exist_ok=True)
        try:
            partial.write_bytes(claim.content)
            try:
                os.link(partial, claim.file)
            except FileExistsError:
                return partial.stat().st_nlink == 2  # made, though the server's answer was lost
            except OSError:  # a file system without hard links
                try:
                    with claim.file.open("xb") as file:
                        file.write(claim.content)
                except FileExistsError:
                    return False
                except OSError:  # an empty claim would be nobody's
                    claim.file.unlink(missing_ok=True)
                    raise
            return True
        except FileNotFoundError:  # the folder was removed by the last of the others
            return False
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    # ── Signs of life ─────────────────────────────────────────────────────────────────────────

    def _beat_on(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk, or a server that is away for a while
                self._beat()
            with contextlib.suppress(OSError):
                self._look_after()

    def _beat(self) -> None:
        self._beats += 1
        count = b"%020d\n" % self._beats
        for _ in range(10):
            try:
                with self._life.open("r+b") as file:  # in place: it needs no space on a full disk
                    file.write(count)
                return
            except FileNotFoundError:
                pass
            with contextlib.suppress(
                FileNotFoundError
            ):  # the last of the others may remove the folder just now
                self._folder.mkdir(parents=True, exist_ok=True)
                self._life.write_bytes(count + _line(self._identity))

    def _look_after(self) -> None:
        """Find the claims that others took over while this process stood still."""
        for name, mine in list(self._held.items()):
            numbers = [number for _, number in self._numbered(name)]
            if mine.number in numbers and max(numbers) == mine.number and not self._is_others(mine):
                continue
            if self._held.pop(name, None) is mine and self._on_lost:  # it wasn't released meanwhile
                self._on_lost(name)

    def _is_others(self, mine: _Claim) -> bool:
        """Return whether a claim's file is another process's now: numbers begin anew where a run had no claim for a while."""
        now = replace(mine, content=_content(mine.file) or b"")
        return now.identity.get("process", self.token) != self.token

    def _lost(self, claim: _Claim) -> bool:
        """Return whether the process that holds a claim has ended without a word."""
        identity, now = claim.identity, time.monotonic()
        if identity.get("process") == self.token:
            return False
        if (ended := self._has_ended(identity, claim.worker)) is not None:
            return ended
        life = self._life_of(claim)
        sign = _content(life)
        last, since, _ = self._seen.get(life, (b"", now, False))
        if life not in self._seen or sign != last:
            self._seen[life] = (sign, now, life in self._seen)
            return False
        return now - since > STALE_SECONDS

    def _has_ended(self, identity: dict[str, Any], worker: dict[str, Any] | None = None) -> bool | None:
        """Return whether a process of this machine and its worker have ended; None where that can't be told."""
        if identity.get("machine") is None or identity.get("machine") != self._identity["machine"]:
            return None
        ended = [
            _ended(one["pid"], one.get("started"))
            for one in (identity, worker or {})
            if isinstance(one.get("pid"), int)
        ]
        return None if None in ended else all(ended)

    def _life_of(self, claim: _Claim) -> Path:
        process = claim.identity.get("process")
        return claim.file if process is None else self._folder / f"{LIFE}{process}"

    def _silence(self, claim: _Claim) -> float:
        """Return the seconds since a holder's last sign of life: as seen here, or by the file system's own clock."""
        life = self._life_of(claim)
        _, since, changed = self._seen.get(life, (None, 0.0, False))
        if changed:
            return time.monotonic() - since
        try:
            return max(0.0, self._life.stat().st_mtime - life.stat().st_mtime)
        except OSError:
            return 0.0


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any]:
    """Return a line as a JSON object; empty where it is none."""
    try:
        entry = parse_json(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _identity_in(life: Path) -> dict[str, Any]:
    """Return whose signs of life a file holds; empty where that isn't written."""
    lines = (_content(life) or b"").split(b"\n")
    return _entry(lines[1]) if len(lines) > 1 else {}


def _listing(folder: Path) -> list[str]:
    try:
        return [
            path.name for path in folder.iterdir()
        ]  # asks the server, where names that weren't there are remembered as missing
    except FileNotFoundError:
        return []


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


# ── Processes of this machine ─────────────────────────────────────────────────────────────────


def _machine() -> str | None:
    """Return what processes that see each other have in common; None where that isn't known."""
    if os.name != "posix":
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # containers number their processes anew
    except (OSError, ValueError):
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _started(pid: int) -> int | None:
    """Return when a process was started, in ticks since boot; None where that isn't known, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        entries = stat.rpartition(")")[2].split()
        return None if entries[0] in "ZX" else int(entries[19])
    except (OSError, ValueError, IndexError):
        return None


def _ended(pid: int, started: int | None) -> bool | None:
    """Return whether a process of this machine has ended; None where that can't be told."""
    if Path("/proc/self/stat").exists():
        now = _started(pid)
        return now is None or (started is not None and now != started)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return None
    return None  # another process may have got its number
