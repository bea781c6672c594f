"""What a run says of itself: metrics.jsonl, sessions.jsonl, TensorBoard events if asked for, and the progress bar.

Not here: what the metrics mean (objectives.py) and the run's report.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zephyr_jax.whole_files import open_whole

SHOWN_WAIT_SHARE = 0.05


def kept_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[str]:
    """The lines of a file of JSON lines that `keep` takes, up to the first that a kill has torn; [] without a file."""
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []:
        # str.splitlines would cut at U+2028 too
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if keep(record):
            kept.append(line)
    return kept


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leaves in a file of JSON lines those that `kept_lines` gives; no file is fine."""
    if path.exists():
        lines = kept_lines(path, keep)
        with open_whole(path) as file:
            file.writelines(line + "\n" for line in lines)


class MetricsLog:
    """metrics.jsonl, one object a line, and the trackers that get the same numbers.

    Args:
      folder: the stage's folder.
      after_step: the step that training goes on from: later lines, from before an interruption, are taken out.
      trackers: "tensorboard" or nothing.
      writes: False reads what is there and keeps further lines to itself: for all processes of a run but the first.
    """

    def __init__(self, folder: Path, *, after_step: int, trackers: Sequence[str] = (), writes: bool = True):
        path = folder / "metrics.jsonl"

        def keep(record: dict[str, Any]) -> bool:
            return 0 < after_step >= record["step"]

        self._records = [json.loads(line) for line in kept_lines(path, keep)]
        self._file, self._events = None, None
        if writes:
            keep_lines(path, keep)
            self._file = path.open("a", encoding="utf-8")
            self._events = _open_events(folder, after_step) if "tensorboard" in trackers else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line: `step` and what was measured there."""
        self._records.append(dict(record))
        if self._file is not None:
            self._file.write(json.dumps(dict(record)) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])

    def records(self) -> list[dict[str, Any]]:
        """All lines so far, earlier sittings' included."""
        return list(self._records)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


class SessionLog:
    """sessions.jsonl: a line when a sitting at a stage begins and one when it ends; a kill leaves out the second.

    {"began": TIME, "after_step": 0, "steps": 700, ...facts} {"ended": TIME, "after_step": 700, "how": "done"}

    Args:
      folder: the stage's folder.
      facts: what the sitting runs on, and what else is known from its start.
      after_step: the step that it goes on from.
      num_steps: steps of the stage.
      writes: False writes nothing: for all processes of a run but the first.
    """

    def __init__(self, folder: Path, *, facts: Mapping[str, Any], after_step: int, num_steps: int, writes: bool = True):
        self._path = folder / "sessions.jsonl" if writes else None
        if writes:
            keep_lines(folder / "sessions.jsonl", lambda record: True)  # what a kill has torn goes
        self._write({"began": _now(), "after_step": after_step, "steps": num_steps} | dict(facts))

    def end(self, how: str, *, after_step: int) -> None:
        """Writes the second line.

        Args:
          how: done, interrupted, or the error's name and message.
          after_step: the last step that was made.
        """
        self._write({"ended": _now(), "after_step": after_step, "how": how})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _open_events(folder: Path, after_step: int) -> Any:
    from tensorboardX import SummaryWriter  # an extra: stages/start.py has looked whether it is there

    return SummaryWriter(str(folder / "tensorboard"), purge_step=after_step + 1 if after_step else None)


class ProgressBar:
    """A bar on stderr over optimizer steps: rate, time left, tokens per second and the loss."""

    def __init__(self, name: str, *, total_steps: int, done_steps: int):
        self._bar = tqdm(desc=name, total=total_steps, initial=done_steps, unit="step", mininterval=0.5)

    def advance(self, *, loss: float, tokens_per_second: float, data_wait_share: float = 0.0) -> None:
        """One more step is done; the share of its time spent waiting for data is shown where it is worth a look."""
        text = f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
        if data_wait_share > SHOWN_WAIT_SHARE:
            text += f", {data_wait_share:.0%} waiting for data"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=self._bar.fp)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
