"""rankwise with one run disturbed at a chosen moment: what tests of resuming start in place of the plain program.

    python tests/disturbed.py compare METHOD MOMENT MARKER ARGUMENTS …   `rankwise compare ARGUMENTS`; where a run of METHOD comes to
                                                                         the moment it writes MARKER and stands still, to be killed
    python tests/disturbed.py runs < PLAN                                runs one after the other, each a process that kills itself

A moment is a name and a number: `step 12` is when step 12 has just been logged. Here a checkpoint follows every step.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path


def disturb(moment: str, act: Callable[[], None]) -> None:
    """Has `act` called at a moment of this process's one run.

    step N           step N is logged, its checkpoint not begun
    line N           half of step N's line is logged
    checkpoint N     half of checkpoint N is written
    replaced N       checkpoint N is in place, the one before it not removed
    evaluation 0     training is over
    result 0         everything is saved but the result
    """
    from rankwise import run_folder
    from rankwise.engine import checkpoint
    from rankwise.run_folder import RunFolder
    from rankwise.runs import evaluation

    kind, number = moment.split()
    counted = 0

    def now() -> bool:
        nonlocal counted
        counted += 1
        return counted == int(number)

    append, save, remove = RunFolder.append_steps, checkpoint.save, run_folder.shutil.rmtree

    def append_steps(self, lines):
        at = any(line["step"] == int(number) for line in lines)
        if at and kind == "line":
            text = json.dumps(lines[-1])
            with (self.path / "steps.jsonl").open("a", encoding="utf-8") as file:
                file.write(text[: len(text) // 2])
            act()
        append(self, lines)
        if at:
            act()

    def save_half(training, folder, **given):
        save(training, folder, **given)
        if now():
            file = folder / "training.safetensors"
            os.truncate(file, file.stat().st_size // 2)
            act()

    def rmtree(path, *arguments, **options):
        if Path(path).name == f"checkpoint-{int(number) - 1}":
            act()
        remove(path, *arguments, **options)

    if kind in ("step", "line"):
        RunFolder.append_steps = append_steps
    elif kind == "checkpoint":
        checkpoint.save = save_half
    elif kind == "replaced":
        run_folder.shutil.rmtree = rmtree
    elif kind == "evaluation":
        evaluation.predict_logits = lambda *_, **__: act()
    elif kind == "result":
        RunFolder.write_result = lambda *_: act()
    else:
        raise ValueError(moment)


def checkpoint_every_step() -> None:
    from rankwise.runs import run

    run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = 0.0, math.inf


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still(marker: str) -> None:
    Path(marker).touch()
    time.sleep(3600)


def compare(method: str, moment: str, marker: str, *arguments: str) -> None:
    from rankwise import cli
    from rankwise.runs import grid

    def command(folder: Path) -> list[str]:
        return [sys.executable, __file__, "worker", method, moment, marker, str(folder)]

    grid.run_grid = partial(grid.run_grid, command=command)
    sys.argv = ["rankwise", "compare", *arguments]
    cli.main()


def worker(method: str, moment: str, marker: str, folder: str) -> None:
    from rankwise.run_folder import RunFolder
    from rankwise.runs import worker

    checkpoint_every_step()
    if RunFolder(folder).read_run()["requested"]["method"] == method:
        disturb(moment, partial(stand_still, marker))
    sys.argv = ["worker", folder]
    worker.main()


def runs() -> None:
    """Reads [[folder, moment or null], …] and prints for each what became of it: `ended` and `continued_from`."""
    from rankwise.run_folder import RunFolder
    from rankwise.runs.run import execute

    def one(folder: str, moment: str | None) -> None:
        checkpoint_every_step()
        if moment == "no checkpoint":
            sys.modules["rankwise.runs.run"].CHECKPOINT_SECONDS = 20.0
            moment = "step 5"
        if moment:
            disturb(moment, die)
        execute(RunFolder(folder), lambda event: None)

    ended = []
    for folder, moment in json.load(sys.stdin):
        checkpoint = RunFolder(folder).checkpoint
        position = checkpoint and json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
        child = os.fork()
        if not child:
            try:
                one(folder, moment)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        ended.append({"ended": code, "continued_from": position["step"] if position else 0})
    print(json.dumps(ended))


if __name__ == "__main__":
    {"compare": compare, "worker": worker, "runs": runs}[sys.argv[1]](*sys.argv[2:])
