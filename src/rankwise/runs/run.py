"""One run from its request to its result. The grid's processes and `rankwise train` both come here.

    prepare ─► step, step, … (log, checkpoints, early stopping) ─► evaluate, save ─► result
                 │ Ctrl-C, SIGTERM                                   │ anything that goes wrong
                 └► checkpoint, `Interrupted`                        └► checkpoint

A run reports through events (see `events`) and keeps everything in its run folder.
"""

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from torch import Tensor

from rankwise import hardware
from rankwise.config_json import options_of, to_json
from rankwise.engine import checkpoint, sharding
from rankwise.engine.compute import predict_logits
from rankwise.engine.processes import ONE, Processes
from rankwise.engine.profiling import profiled_steps
from rankwise.engine.training import Step, Training
from rankwise.errors import ProcessLost, RankwiseError, machine_fault
from rankwise.files import check_sums, damaged
from rankwise.rank.decision import start_line
from rankwise.run_folder import RunFolder
from rankwise.runs import interruption
from rankwise.runs.early_stopping import EarlyStopping
from rankwise.runs.evaluation import evaluate, labels
from rankwise.runs.events import Emit, optional
from rankwise.runs.interruption import Interrupted
from rankwise.runs.prepare import Prepared, prepare
from rankwise.runs.result import finish
from rankwise.runs.trackers import Board

FIRST_CHECKPOINT_SECONDS = 5.0
"""Training time before the first checkpoint of a process: from then on a kill doesn't cost everything."""
CHECKPOINT_SECONDS = 20.0
"""Shortest time between two checkpoints."""
CHECKPOINT_SHARE = 0.02
"""Largest fraction of a run's time that checkpoints take."""
REPORT_SECONDS = 0.5
"""Time between two `step` events."""


def execute(folder: RunFolder, emit: Emit, processes: Processes = ONE) -> dict[str, Any]:
    """Run what `folder` asks for, from its checkpoint if there is one, and return the result that was written there.

    Args:
        folder: of the run; in all processes but the first a `FollowedRun`.
        emit: gets the run's events.
        processes: that train together; each calls this. All but the first return an empty result.

    Raises:
        RankwiseError: an error in the input or in a file, or a loss that isn't finite.
        ProcessLost: another process has ended.
        Interrupted: a signal asked the process to end; it says what was saved.
        OSError: a file can't be written.
    """
    run = prepare(folder, processes)
    config, training = run.config, run.training
    if (
        run.requested.table.fold is None
    ):  # the command `train` trains no fold; a grid's compare.yaml asks for it again
        with optional("run.yaml", emit):
            folder.write_options(options_of(run.requested, folder.path))
    folder.update_run_json(
        resolved=to_json(config),
        facts=run.facts,
        task=to_json(run.rows.dataset.task),
        look=run.look.to_json(),
        versions=hardware.versions(),
        hardware=hardware.hardware(training.compute.device),
    )
    if resumed := _resume(run, folder):
        run.notes.append(resumed)
    _check_same(run)
    stopping = EarlyStopping(config.train.patience)
    stopping.load(folder, training.step_number)
    emit(
        {
            "event": "start",
            "task": run.rows.dataset.task.name,
            "method": config.method,
            "seed": config.seed,
            "steps": training.steps,
            "notes": run.notes,
        }
    )
    folder.truncate_steps(training.step_number)
    board = Board(emit, run.assigned.report_to if folder.writes else (), folder, training.step_number)
    with interruption.deferred() as interrupted:
        processes.asked_to_end = interrupted
        _train(run, folder, stopping, board, emit)
        if any(processes.of_all(interrupted())):  # behind the last step, where no process asks the others
            _end(run, folder)
    training.end()
    for note in training.notes:
        emit({"event": "note", "text": note})
    _check_same(run, trained_only=True)
    try:
        result = finish(run, folder, emit, peak_rss_mb=run.rss.mb)
    except RankwiseError:  # what was trained is of no use
        raise
    except BaseException as error:  # what was trained isn't lost with what comes after it
        if folder.finished or run.training.parts:  # other processes, which don't come here, have parts, too
            raise
        if isinstance(error, KeyboardInterrupt):
            _end(run, folder)
        with contextlib.suppress(OSError, SafetensorError):
            _checkpoint(run, folder)
        raise
    if not folder.writes:
        return result
    board.close(training.step_number, result["scores"])
    emit({"event": "result", **result})
    return result


def _resume(run: Prepared, folder: RunFolder) -> str:
    """Continue from the newest whole checkpoint; return a note on it, empty if there is no checkpoint.

    Raises:
        RankwiseError: there are some, and all are damaged.
    """
    faults: list[tuple[Path, Exception]] = []
    for stored in folder.checkpoints:
        try:
            check_sums(stored)
            checkpoint.load(run.training, stored, run.request)
        except (OSError, ValueError, SafetensorError) as error:
            faults.append((stored, error))
        else:
            return f"Continued from step {run.training.step_number}."
    if faults:
        raise damaged(*faults[0], "Remove it to begin this run anew.")
    return ""


def _train(
    run: Prepared,
    folder: RunFolder,
    stopping: EarlyStopping,
    board: Board,
    emit: Emit,
) -> None:
    """Train to the last step, or until early stopping ends the run.

    Raises:
        Interrupted: after a step, where a process was asked to end.
        ProcessLost: another process has ended; this one's state is saved if that was before a step changed anything.
    """
    training, processes = run.training, run.training.compute.processes
    profiled = profiled_steps(training.batches, training.rows, training.compute)
    pace = _Pace()  # its clock starts here: a checkpoint wouldn't save the time of what comes before
    logged = len(training.decisions)
    if training.rank is not None and not folder.read_ranks():
        folder.append_ranks([start_line(training.rank.ranks)])
    while not training.done and not stopping.stop:
        with training.compute.running(run.model):
            try:
                step = training.step(profile=training.step_number in profiled)
            except ProcessLost:
                if training.between_steps and not training.parts:  # of which the lost process has some
                    with contextlib.suppress(OSError, SafetensorError):
                        _checkpoint(run, folder)
                raise
        line = _line(step)
        _evaluate(run, line, stopping, emit)
        folder.append_steps([line])
        for decision in training.decisions[logged:]:
            folder.append_ranks([decision.to_json()])
            emit({"event": "rank", "text": str(decision)})
        logged = len(training.decisions)
        board.step(line)
        if pace.report(training.done):
            emit(_progress(training, step.loss))
        if processes.ends:
            _end(run, folder)
        due = pace.checkpoint()
        if (processes.of_first(due) if training.parts else due) and not training.done:
            tensors = _trained(run, folder)  # not optional: processes gather them together
            with optional("A checkpoint", emit):
                _write_checkpoint(run, folder, tensors)
            pace.wrote()


def _check_same(run: Prepared, *, trained_only: bool = False) -> None:
    """Check that all processes have the same weights at the same step of the same run."""
    training, processes = run.training, run.training.compute.processes
    if processes.count == 1:
        return
    weights = [p for p in run.model.parameters() if p.requires_grad or not trained_only]
    weights += [] if trained_only else list(run.model.buffers())
    when = "after the last step" if trained_only else f"before step {training.step_number + 1}"
    processes.check_same(
        f"The weights {when}", sharding.own_parts(weights), f"{run.request} {training.step_number}"
    )


def _line(step: Step) -> dict[str, Any]:
    """Return a step as a line of steps.jsonl."""
    line: dict[str, Any] = {
        "step": step.step,
        "loss": step.loss,
        "lr": step.lr,
        "grad_norm": None if step.skipped else step.grad_norm,
        "rows": step.rows,
        "tokens": step.tokens,
        "seconds": round(step.seconds, 6),
    }
    if step.skipped:
        line["skipped"] = True
    if step.memory is not None:
        line["memory"] = step.memory
    if step.flops is not None:
        line["flops"] = step.flops
    return line


def _evaluate(run: Prepared, line: dict[str, Any], stopping: EarlyStopping, emit: Emit) -> None:
    """Add to a step's line what is evaluated after it: validation rows if asked for, held-out rows at the end of an epoch."""
    training, rows, every = run.training, run.rows, run.config.train.evaluate_every
    if every and line["step"] % every == 0:
        _, line["validation"] = evaluate(
            training,
            rows.validation[rows.headline],
            split=rows.headline,
            task=rows.dataset.task,
            emit=emit,
        )
    if rows.held_out is not None and line["step"] % training.batches.steps_per_epoch == 0:
        logits = predict_logits(run.model, rows.held_out, training.compute, objective=rows.objective)
        line["held_out_loss"] = rows.objective.mean_loss(logits, labels(rows.held_out))
        stopping.add(line["held_out_loss"])


def _progress(training: Training, loss: float) -> dict[str, Any]:
    seconds_a_step = training.seconds / training.step_number
    return {
        "event": "step",
        "step": training.step_number,
        "steps": training.steps,
        "loss": loss,
        "rows_per_second": training.speed.rows_per_second,
        "tokens_per_second": training.speed.tokens_per_second,
        "seconds_left": seconds_a_step * (training.steps - training.step_number),
    }


def _checkpoint(run: Prepared, folder: RunFolder) -> None:
    """Write a checkpoint in place of the last one. Where processes share trained weights out, all come here together."""
    _write_checkpoint(run, folder, _trained(run, folder))


def _trained(run: Prepared, folder: RunFolder) -> dict[str, Tensor]:
    return checkpoint.trained(run.training, keep=folder.writes)


def _write_checkpoint(run: Prepared, folder: RunFolder, tensors: dict[str, Tensor]) -> None:
    folder.replace_checkpoint(partial(checkpoint.save, run.training, request=run.request, tensors=tensors))


def _end(run: Prepared, folder: RunFolder) -> NoReturn:
    """Save what was trained, and end as a signal asked for."""
    training = run.training
    where = f"{interruption.words()} after step {training.step_number} of {training.steps}"
    try:
        _checkpoint(run, folder)
    except (OSError, SafetensorError) as error:
        then = (
            "The same command continues from an earlier step." if folder.checkpoint else "Nothing is saved."
        )
        raise Interrupted(
            f"{where}, which couldn't be saved. {machine_fault(error) or error} {then}"
        ) from None
    raise Interrupted(f"{where}. The same command continues from there.")


class _Pace:
    """When to report, and when to write a checkpoint."""

    def __init__(self) -> None:
        self._reported = 0.0
        self._begun = self._written = time.perf_counter()
        self._interval = min(FIRST_CHECKPOINT_SECONDS, CHECKPOINT_SECONDS)

    def report(self, last: bool) -> bool:
        """Return whether a `step` event is due; after the last step it always is."""
        now = time.perf_counter()
        if now - self._reported < REPORT_SECONDS and not last:
            return False
        self._reported = now
        return True

    def checkpoint(self) -> bool:
        """Return whether a checkpoint is due."""
        self._begun = time.perf_counter()
        return self._begun - self._written >= self._interval

    def wrote(self) -> None:
        """Record that the checkpoint that was due is written; slow ones are written less often."""
        self._written = time.perf_counter()
        self._interval = max(CHECKPOINT_SECONDS, (self._written - self._begun) / CHECKPOINT_SHARE)
