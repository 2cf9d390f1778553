"""What a measuring parent and its child say to each other: a job on the child's standard input, events in a file.

Events go to a file of their own, one JSON object a line, and not to the standard output: a runtime may print there what
it likes. Each is written at once, so that the last one tells where the child was when it died.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from dtp_deploy.profile.settings import MeasureSettings
from dtp_deploy.target import TargetSpec

Event = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a child is to measure, and where it writes its events."""

    target: TargetSpec
    models: Mapping[str, Path]
    settings: MeasureSettings
    events: Path

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(
            {
                "target": {"name": self.target.name, "options": dict(self.target.options)},
                "models": {name: str(path) for name, path in self.models.items()},
                "settings": asdict(self.settings),
                "events": str(self.events),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read what `to_json` wrote.

        >>> job = Job(TargetSpec("cpu", {"threads": 1}), {"a": Path("a.onnx")}, MeasureSettings(), Path("events"))
        >>> Job.from_json(job.to_json()) == job
        True
        """
        values = json.loads(text)
        return cls(
            target=TargetSpec(**values["target"]),
            models={name: Path(path) for name, path in values["models"].items()},
            settings=MeasureSettings(**values["settings"]),
            events=Path(values["events"]),
        )


def write_event(stream: TextIO, event: str, **values: object) -> None:
    """Append an event, and hand it to the system at once."""
    stream.write(json.dumps({"event": event, **values}) + "\n")
    stream.flush()


def read_events(path: Path) -> list[Event]:
    """All events that were written whole; a last line that a dying child left half-written is not among them."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events
