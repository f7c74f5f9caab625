"""``emerald-jax sweep FILE.toml``: a grid of settings and seeds, each run a process of its own.

All state is read from the run directories: checkpoints, episodes, the lock. NAME.log next to a run
directory has the output of its processes; after each it has a line with the exit code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from emerald_jax.commands import Parser, aligned, number, write_error, write_out
from emerald_jax.commands.train import ALIASES, parse_train, setting_types
from emerald_jax.config import Config, ConfigError, nearest
from emerald_jax.process import INTERRUPTED, StopSignals, expand_home
from emerald_jax.run.directory import (
    CHECKPOINTS_DIR,
    check_run_dir,
    compare_settings,
    first_line,
    in_use,
    read_metadata,
    saved_config,
    saved_steps,
)

#: Exit codes of a run that a signal stopped: saved, or too early for that.
STOPPED = (INTERRUPTED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
#: Entries of a file; what is no setting there, and what to write instead; types of values.
_ENTRIES = {"preset": str, "seeds": list, "settings": dict, "grid": dict, "submitit": dict}
_ELSEWHERE = {"seed": "write seeds = [0, 1, 2]", "logdir": "each run has its own below --out"}
_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
_TYPES |= {list: "a list", dict: "a table"}
#: Of ``[submitit]``: a day, and time to save before its end.
_SUBMITIT = {"timeout_min": 24 * 60, "slurm_signal_delay_s": 180}


def run_sweep(arguments: list[str]) -> int:
    """List the runs of a sweep, train them here, or submit them; 75 if stopped, 1 if one failed."""
    parser = Parser("sweep")
    parser.add_argument("file", metavar="FILE.toml", help="preset, seeds, [settings] and [grid]")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="only list the runs (the default)")
    how.add_argument("--local", action="store_true", help="train on this machine")
    how.add_argument("--submitit", action="store_true", help="submit to SLURM, with submitit")
    about = "with --local: runs side by side (1)"
    parser.add_argument("--jobs", type=number(1), metavar="N", help=about)
    about = "folder of the run directories (runs/sweeps/FILE)"
    parser.add_argument("--out", metavar="DIR", help=about)
    options = parser.parse_args(arguments)
    if options.jobs and not options.local:
        raise ConfigError("--jobs is for --local")
    file = Path(options.file)
    out = Path(options.out or Path("runs", "sweeps", file.stem))
    code = 0
    try:
        jobs, parameters = read_sweep(file, out)
        if options.submitit:
            _submit(jobs, out, {"name": file.stem, **_SUBMITIT, **parameters})
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if options.local:
        code = _train_here(jobs, options.jobs or 1)
    write_out(_table(jobs, out))
    return code


def read_sweep(file: Path, out: Path) -> tuple[list[Job], dict[str, Any]]:
    """The runs of a file, each validated, and the entries of its table ``[submitit]``."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as TOML: {first_line(error)}") from error
    for name, value in found.items():
        if name not in _ENTRIES:
            hint = nearest(name, _ENTRIES) or ": settings stand below [settings] or [grid]"
            raise ConfigError(f"unknown entry {name}{hint}")
        _check_type(name, _ENTRIES[name], value)
    fixed, grid = (list(_settings(found.get(name, {}))) for name in ("settings", "grid"))
    if "grid" in found and not grid:
        raise ConfigError("[grid] is empty: give settings with lists of values, or leave it out")
    for name, times in Counter(name for name, _ in (*fixed, *grid)).items():
        if name in _ELSEWHERE or times > 1:
            raise ConfigError(f"{name}: {_ELSEWHERE.get(name, 'give it once, not twice')}")
    grid.append(("seed", found.get("seeds", [0])))
    for name, values in grid:
        _check_type(name, list, values)
        if not values:
            raise ConfigError(f"{name} is an empty list: give at least one value")
    preset = found.get("preset") or parse_train([])  # which lists the presets
    common = [preset, *(_argument(*setting) for setting in fixed)]
    jobs: dict[Path, Job] = {}
    for values in itertools.product(*(values for _, values in grid)):
        chosen = [(name, value) for (name, _), value in zip(grid, values, strict=True)]
        job = _job(common, chosen, out)
        if job.path in jobs:
            raise ConfigError(f"{job.path.name} is listed twice")
        jobs[job.path] = job
    return list(jobs.values()), found.get("submitit", {})


def _settings(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names as ``emerald-jax train`` lists them, and values; ``optim.x`` and ``"optim.x"`` work."""
    for name, value in table.items():
        name = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            yield from _settings(value, f"{name}.")
        else:
            yield ALIASES.get(name, name), value


def _check_type(name: str, kind: Any, value: Any) -> None:
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise ConfigError(f"{name} takes {_TYPES[kind]}, got {value!r}")


def _argument(name: str, value: Any) -> str:
    """A setting as an argument of ``emerald-jax train``; ConfigError for a wrong type."""
    kind = setting_types().get(name)
    if kind is not None:
        _check_type(name, kind if kind in _TYPES else str, value)
    group, dot, switch = name.rpartition(".")
    if kind is bool and not switch.startswith("no-"):
        return f"--{group}{dot}{'' if value else 'no-'}{switch}"
    return f"--{name}={value}"


def _job(common: list[str], chosen: list[tuple[str, Any]], out: Path) -> Job:
    """One run; refused before any starts if it cannot work, or its directory holds another."""
    arguments = expand_home([*common, *(_argument(*setting) for setting in chosen)])
    config = parse_train(arguments)
    # Quoted, so that different values never have the same name.
    values = [(n, operator.attrgetter(n.replace("-", "_"))(config)) for n, _ in chosen]
    path = out / ",".join(f"{name}={quote(str(value), safe=':+')}" for name, value in values)
    config = dataclasses.replace(config, logdir=str(path.absolute()))
    if config.data:
        from emerald_jax.run.data import with_data

        config = with_data(config)
    config.validate(max(1, config.devices))
    check_run_dir(config)
    before = saved_config(path)
    if before is not None:
        from emerald_jax.reports.runs import changed_settings

        kept = {"preset", *changed_settings(before), *changed_settings(config)}
        for name, old, new in compare_settings(before, config):
            if name in kept:
                way = "choose another --out, or list both values in [grid]"
                raise ConfigError(f"{path} was begun with {name} {old}, not {new}: {way}")
    command = [sys.executable, "-m", "emerald_jax", "train", *arguments]
    return Job(path, [*command, f"--logdir={config.logdir}"], config)


class Job:
    """A run of a sweep, and the process that trains it.

    Attributes:
        path: its directory.
        command: the command of its process.
        config: its settings.
        log: the output of its processes, and their exit codes.
    """

    def __init__(self, path: Path, command: list[str], config: Config) -> None:
        self.path, self.command, self.config = path, command, config
        self.log = path.with_name(f"{path.name}.log").absolute()
        self._process: subprocess.Popen | None = None
        self._asked = False

    @property
    def steps(self) -> int:
        """Environment steps in its newest checkpoint."""
        for step in reversed(saved_steps(self.path)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return read_metadata(self.path / CHECKPOINTS_DIR / str(step))[0]["run"]["env_steps"]
        return 0

    @property
    def last(self) -> tuple[str, str, str]:
        """The end of its log: a message, ``exit code`` or ``queued as job``, a number."""
        text = b""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            text = file.read()
        end = r"([^\n]*)\n?(exit code|queued as job) (\S+)\n"
        found = re.search(f"{end}$", text.decode(errors="replace"))
        return found.groups() if found else ("", "", "")

    def state(self, queue: Sequence[str] = ()) -> str:
        """``running``, ``queued``, ``done``, ``failed``, ``stopped`` or ``not started``."""
        _, what, value = self.last
        code = int(value) if what == "exit code" else None  # None: killed, or still running
        if in_use(self.path):
            return "running"
        if what == "queued as job" and value in queue:
            return "queued"
        if code == 0 and (self.config.max_minutes or self.steps >= self.config.steps):
            return "done"
        if code not in (None, 0, *STOPPED):
            return "failed"
        return "stopped" if saved_steps(self.path) else "not started"

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start its process, in a session of its own: signals reach it only through stop()."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with self.log.open("ab") as log:
            streams["stdout"] = log
            self._process = subprocess.Popen(
                self.command, env=environment, start_new_session=True, **streams
            )

    def stop(self) -> bool:
        """Ask its process to save and to end; only once, since a second signal ends it at once."""
        if self._process is None or self._asked:
            return False
        self._asked = True
        self._process.terminate()
        return True

    def ended(self) -> int | None:
        """The exit code, which is added to the log; None while the process runs."""
        code = self._process.poll()
        if code is None:
            return None
        code = code if code >= 0 else 128 - code
        self.note(f"exit code {code}")
        return code

    def note(self, text: str) -> None:
        """Add a line to the log."""
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")

    def __call__(self) -> None:
        """Train as a job of submitit; a job that was stopped goes back into the queue."""
        import submitit

        if self.state() in ("done", "running"):  # submitted twice
            return
        requeue = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        before, received = signal.getsignal(requeue), []

        def stop(number: int, frame: Any) -> None:
            del frame
            received.append(number)
            self.stop()

        # SLURM signals all processes of a job, and ours inherits that it ignores this one.
        signal.signal(requeue, signal.SIG_IGN)
        self.start()
        signal.signal(requeue, stop)
        signal.signal(signal.SIGTERM, stop)
        while (code := self.ended()) is None:
            time.sleep(0.5)
        signal.signal(requeue, before)
        job_id = submitit.JobEnvironment().job_id
        # A cancelled job is no longer RUNNING, nor one that SLURM has put back into the queue.
        running = "JobState=RUNNING" in _slurm("scontrol", "show", "job", job_id)
        if code == STOPPED[0] and (running or requeue in received):
            self.note(f"queued as job {job_id}")
            signal.raise_signal(requeue)  # submitit's own handler puts the job back
        if code:
            raise RuntimeError(f"exit code {code}, see {self.log}")

    def checkpoint(self) -> Any:
        """What submitit runs when the job returns from the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(Job(self.path, self.command, self.config))


def _slurm(*command: str) -> str:
    """The output of a command of SLURM; empty without SLURM."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _queue() -> list[str]:
    """Numbers of this user's jobs."""
    return _slurm("squeue", "--me", "--array", "--noheader", "--format=%i").split()


def _train_here(jobs: list[Job], side_by_side: int) -> int:
    """Train the runs that are not complete, some side by side; returns the exit code."""
    waiting = [job for job in jobs if job.state() not in ("done", "running")]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    slots, total, code = list(range(side_by_side)), len(waiting), 0
    running: dict[Job, int] = {}
    with StopSignals() as signals:

        def stop(why: str) -> None:
            for job in list(running):
                if job.stop():
                    write_error(f"{why}: {job.path.name} saves, then the sweep stops")

        signals.tell = stop
        while waiting or running:
            if signals.name or code == STOPPED[0]:
                waiting.clear()
                stop(signals.name or "a run was stopped")
            while waiting and slots:
                job = waiting.pop(0)
                if job.state() in ("done", "running"):  # meanwhile, by another process
                    continue
                running[job] = slots.pop(0)
                environment = dict(os.environ)
                if 1 < side_by_side <= len(devices):  # one GPU each
                    environment["CUDA_VISIBLE_DEVICES"] = devices[running[job]]
                write_error(f"{total - len(waiting)} of {total}: {job.path.name}")
                try:
                    job.start(environment)
                except OSError as error:  # no process, no disk: those that run are waited for
                    write_error(f"{job.path.name} cannot be started ({error.strerror})")
                    slots.append(running.pop(job))
                    waiting, code = [], 1
            for job in list(running):
                if (ended := job.ended()) is not None:
                    slots.append(running.pop(job))
                    code = STOPPED[0] if ended in STOPPED else max(code, int(ended != 0))
            time.sleep(0.1)
    return STOPPED[0] if signals.name else code


def _submit(jobs: list[Job], out: Path, parameters: dict[str, Any]) -> None:
    """Submit the runs that are neither complete nor running nor queued, as one job array."""
    try:
        import submitit
    except ImportError as error:
        way = "pip install 'emerald-jax[submitit]'"
        raise ConfigError(f"--submitit needs submitit: {way}") from error
    queue = _queue()
    jobs = [job for job in jobs if job.state(queue) not in ("done", "running", "queued")]
    if not jobs:
        return
    try:
        executor = submitit.AutoExecutor(out / ".submitit", slurm_max_num_timeout=10_000)
        executor.update_parameters(**parameters)
        with executor.batch():
            handles = [executor.submit(job) for job in jobs]
    except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"[submitit] does not work: {first_line(error)}") from error
    for job, handle in zip(jobs, handles, strict=True):
        job.note(f"queued as job {handle.job_id}")
    write_error(f"jobs submitted ({executor.cluster}): {len(jobs)}; their output is in {out}")


def _table(jobs: list[Job], out: Path) -> str:
    """State, steps and return of each run, a count of the states, and why some failed."""
    from emerald_jax.reports.runs import NONE, RECENT, read_runs

    rows, failed, states, queue = (
        [("state", "steps", "of", "return", "run")],
        "",
        Counter(),
        _queue(),
    )
    for job in jobs:
        state, steps, score, name = job.state(queue), job.steps, NONE, job.path.name
        with contextlib.suppress(ConfigError):  # not a run yet
            (facts,) = read_runs([job.path])
            steps = max(steps, facts.env_steps)
            if recent := [row["score"] for row in facts.episodes[-RECENT:]]:
                score = f"{statistics.fmean(recent):.2f}"
        rows.append((state, f"{steps:,}", f"{job.config.steps:,}", score, name))
        states[state] += 1
        if state == "failed":
            message, _, code = job.last
            failed += f"{name}: exit code {code}: {message}\n"
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{aligned(rows)}{out}: {counts}\n{failed}"
